"""What the documents say is what the code says."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from sadi_lmeval.methods.registry import UNSTEERED, spelled_out

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


def test_the_changelog_has_the_headings_of_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    parts = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert parts[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", part) for part in parts[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, flags=re.MULTILINE)) <= kinds
    # What is appended to the end stands under a heading, too.
    assert text.index("### ") < text.index("\n- ")


def test_the_demo_s_table_has_every_method_on_two_tasks_that_are_shipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    demo = runpy.run_path(str(ROOT / "bench/demo.py"))
    rows = [line.strip("| ").split(" | ") for line in demo["in_readme"]().splitlines()]
    heads, _, *rows = [row for row in rows if len(row) > 1 or "---" in row[0]]
    assert heads == ["method", *(f"{task} (acc)" for task in demo["TASKS"]), "average"]
    arms = ["unsteered" if name == UNSTEERED else name for name in spelled_out(["all"])]
    assert sorted(row[0] for row in rows) == sorted(arms)
