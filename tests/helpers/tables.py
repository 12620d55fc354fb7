"""The tables that a script of bench prints, and the documentation holds."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import transformers

FOLDER = Path(__file__).parents[2]


def architectures_bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script behind docs/architectures.md; skips on releases that its tables are not of."""
    release = f"transformers=={transformers.__version__}\n"
    if release not in (FOLDER / "constraints.txt").read_text():
        pytest.skip("the table is of the release of transformers in constraints.txt")
    monkeypatch.syspath_prepend(str(FOLDER / "bench"))
    monkeypatch.delitem(sys.modules, "architectures", raising=False)
    return importlib.import_module("architectures")


def documented() -> str:
    """What docs/architectures.md says."""
    return (FOLDER / "docs" / "architectures.md").read_text(encoding="utf-8")
