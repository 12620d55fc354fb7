"""YAML files of the user's and ours: read safely, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from sadi_lmeval.errors import UserError, first_line

_LARGEST = 1 << 18
"""Bytes; larger files are not parsed."""

T = TypeVar("T")
_kept: ContextVar[dict[Hashable, Any] | None] = ContextVar("_kept", default=None)


@contextmanager
def files_looked_at_once() -> Iterator[None]:
    """Take it that no file changes until this is left: what :func:`once` makes is made once.

    Otherwise every task of a run would look at the files of every other one.
    """
    if _kept.get() is not None:
        yield
        return
    before = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(before)


def once(key: Hashable, make: Callable[[], T]) -> T:
    """Make what files say; within :func:`files_looked_at_once` once for every key.

    Args:
        make: something that nobody changes.
    """
    kept = _kept.get()
    if kept is None:
        return make()
    if key not in kept:
        kept[key] = make()
    return cast(T, kept[key])


def read_yaml(path: Path) -> Any:
    """Read what a YAML file says; only plain values, nothing is executed.

    Raises:
        UserError: it cannot be read, is no plain YAML (a harness task with ``!function``), or has
            aliases, through which a few lines can stand for more than any memory holds.
    """
    content: Any = None
    try:
        status = path.stat()
        content, fault = _parsed(path, status.st_mtime_ns, status.st_size)
    except OSError as error:
        fault = first_line(error)
    if fault is not None:
        raise UserError(f"file {path}: not valid YAML ({fault})")
    return deepcopy(content)


def read_if_ours(path: Path, key: str) -> Any:
    """Read a YAML file that may be another tool's: a harness task with ``!function``, for one.

    Args:
        key: that a file of ours has at the beginning of a line.

    Returns:
        what it says; None where it is no plain YAML, and not ours.

    Raises:
        UserError: it has the key, and cannot be read.
    """
    try:
        return read_yaml(path)
    except UserError:
        try:
            lines = path.read_bytes()[:_LARGEST].splitlines()
        except OSError:
            lines = []
        if any(line.startswith(f"{key}:".encode()) for line in lines):
            raise
        return None


@lru_cache(maxsize=4096)
def _parsed(path: Path, modified: int, size: int) -> tuple[Any, str | None]:
    """Parse a file as it is at a time, or say what is wrong with it.

    Each file is looked at for every task of a run.
    """
    try:
        if size > _LARGEST:
            raise ValueError(f"larger than {_LARGEST} bytes")
        text = path.read_text(encoding="utf-8")
        if "*" in text and any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("it has aliases (*), write out what they stand for")
        content = yaml.safe_load(text)
        _refuse_huge_numbers(content)
    # PyYAML lets the errors of its value constructors through: dates, numbers, booleans.
    except (
        *(yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError),
        *(RecursionError, OSError),
    ) as error:
        return None, first_line(error)
    return content, None


def _refuse_huge_numbers(content: Any) -> None:
    """Refuse what takes longer to write out than to read: 59:59:59:… has any number of digits."""
    if isinstance(content, dict):
        content = [*content.keys(), *content.values()]
    if isinstance(content, (list, tuple, set)):
        for value in content:
            _refuse_huge_numbers(value)
    elif isinstance(content, int) and abs(content) >= 1 << 63:
        raise ValueError("a whole number has more than 63 bits")


def yaml_files(folder: Path) -> list[Path]:
    """List the YAML files in a folder and below, in a fixed order."""

    def listed() -> list[Path]:
        return [path for path in sorted(folder.rglob("*.yaml")) if path.is_file()]

    return once(("files", folder), listed)
