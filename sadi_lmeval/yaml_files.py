"""YAML files of the user's and ours: read safely, or refused in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sadi_lmeval.errors import UserError, first_line


def read_yaml(path: Path) -> Any:
    """What a YAML file says; only plain values, nothing is executed.

    Raises:
        UserError: it cannot be read, or is not plain YAML (a harness task with ``!function``).
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    # PyYAML lets the errors of its value constructors through: dates, numbers, booleans.
    except (
        *(yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError),
        *(RecursionError, OSError),
    ) as error:
        reason = first_line(error)
        raise UserError(f"file {path}: not valid YAML ({reason})") from None


def yaml_files(folder: Path) -> Iterator[Path]:
    """The YAML files in a folder and below, in a fixed order."""
    yield from (path for path in sorted(folder.rglob("*.yaml")) if path.is_file())
