"""What the documents say is what the code says."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]


def test_the_readme_has_the_table_of_arguments_that_their_declarations_give() -> None:
    made = runpy.run_path(str(ROOT / "bench/arguments.py"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert made["table"]() in text, "run python bench/arguments.py README.md"
