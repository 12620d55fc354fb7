"""Where the recipes and task configs are: in the installed package or at the top of a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def task_configs() -> Path:
    """Find the folder that says which recipe goes with which benchmark."""
    return _folder("task_configs")


def contrastive_sets() -> Path:
    """Find the folder of recipes and of hand-written pair sets."""
    return _folder("contrastive_sets")


def _folder(name: str) -> Path:
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
