"""What the documents say is what the code says."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]


def test_documents_have_the_tables_of_arguments_that_their_declarations_give() -> None:
    made = runpy.run_path(str(ROOT / "bench/arguments.py"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert made["in_readme"]() in text, "run python bench/arguments.py"
    text = (ROOT / "docs/arguments.md").read_text(encoding="utf-8")
    assert made["page"]() == text, "run python bench/arguments.py"


def test_the_notebook_has_its_outputs_and_nothing_of_the_machine_that_made_them() -> None:
    """`make docs` runs it; in the repository it is to be read."""
    text = (ROOT / "docs/tour.ipynb").read_text(encoding="utf-8")
    outputs = [out for cell in json.loads(text)["cells"] for out in cell.get("outputs", [])]
    kinds = {kind for out in outputs for kind in out.get("data", {})}
    assert {"image/png", "text/markdown"} <= kinds
    assert {out.get("name", "stdout") for out in outputs} == {"stdout"}
    assert "error" not in {out["output_type"] for out in outputs}
    assert re.search(r"/(home|root|tmp|Users)/", text) is None


def test_no_module_of_tests_takes_anything_from_another() -> None:
    """What several share stands in tests/helpers."""
    folder = ROOT / "tests"
    found = [*folder.rglob("*.py"), *(ROOT / "bench").glob("*.py")]
    assert folder / "faults" / "test_killed.py" in found
    pattern = re.compile(r"^\s*(from|import) +(tests\.|faults\.)?test_", re.MULTILINE)
    assert [p.name for p in found if pattern.search(p.read_text(encoding="utf-8"))] == []
