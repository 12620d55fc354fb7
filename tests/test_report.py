"""Reports come from folders of records alone, and are written whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_leaderboard import scored, two_tasks
from test_record import make_record

from sadi_lmeval.errors import UserError
from sadi_lmeval.records.record import FOLDER, FORMAT, Record, _digest, save_record
from sadi_lmeval.reports.report import merged, report

FILES = ["leaderboard.csv", "leaderboard.json", "leaderboard.md", "model-index.yaml"]


def saved(folder: Path, *records: Record) -> Path:
    for record in records:
        save_record(record, folder)
    return folder


def test_a_report_writes_every_file_and_returns_the_markdown(tmp_path: Path) -> None:
    folder, output = saved(tmp_path / "run", *two_tasks()), tmp_path / "new" / "report"
    text = report([folder], output)
    assert sorted(path.name for path in output.iterdir()) == FILES
    assert (output / "leaderboard.md").read_text(encoding="utf-8") == text
    report([folder], output, html=True)
    assert sorted(path.name for path in output.iterdir()) == [*FILES, "report.html"]


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", *two_tasks())
    for name in "ab":
        report([folder], tmp_path / name, html=True)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_diagnostics_tell_of_each_cell_what_changed(tmp_path: Path) -> None:
    text = report([saved(tmp_path / "run", *two_tasks())], tmp_path, diagnostics=True)
    assert "tiny, sadi-head on boolq: acc 80.0" in text
    assert "difference +30.0 [" in text
    assert "right to wrong: 0, wrong to right: 12" in text
    assert "gold answers: no 50.0 %, yes 50.0 %" in text
    assert "balanced accuracy: 0.800, before 0.500" in text
    assert "sadi-head on rte, mask from boolq" in text


def test_folders_are_merged_and_a_cell_in_two_of_them_is_taken_once(tmp_path: Path) -> None:
    one = saved(tmp_path / "one", scored(20, "none"), scored(30, "iti"))
    again = replace(scored(20, "none"), command="another", seconds=9.0)
    two = saved(tmp_path / "two", again, scored(31, "caa"))
    three = saved(tmp_path / "three", scored(31, "none", run="other"))
    found = merged([one, two, one, three])
    assert sorted((r.run[:5], r.method) for r in found) == [
        ("01234", "caa"), ("01234", "iti"), ("01234", "none"), ("other", "none")
    ]  # fmt: skip


def test_a_cell_with_different_content_in_two_folders_is_refused(tmp_path: Path) -> None:
    one = saved(tmp_path / "one", scored(20, "none"))
    two = saved(tmp_path / "two", scored(21, "none"))
    with pytest.raises(UserError) as caught:
        report([one, two], tmp_path / "out")
    assert f"{one} and {two}: both have none on boolq" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_records_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records"):
        report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", *two_tasks())
    path = next((folder / FOLDER).iterdir())
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="cut off or damaged"):
        report([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = saved(tmp_path / "run", *two_tasks())
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written") as caught:
        report([folder], tmp_path / "file" / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("values", [1.0]),
        ("values", ["1", 0, 1, 1]),
        ("values", [10**400, 0, 1, 1]),
        ("chosen", [-1, 0, 0, 0]),
        ("chosen", [True, 0, 0, 0]),
        ("gold", [0, 0, 0, 0]),
        ("labels", [1, 2]),
        ("documents", []),
        ("metrics", {"acc": 1.0}),
        ("metrics", []),
        ("steering", None),
        ("task", 3),
        ("num_fewshot", None),
        ("mask_from", 1),
    ],
)
def test_an_intact_record_of_strange_types_is_refused(
    tmp_path: Path, field: str, value: Any
) -> None:
    path = saved(tmp_path, make_record()) / FOLDER / "boolq.none.json"
    content = {**asdict(make_record()), field: value}
    path.write_text(json.dumps({"format": FORMAT, "sha256": _digest(content), **content}))
    with pytest.raises(UserError, match=r"is not as this package writes it") as caught:
        report([tmp_path], tmp_path / "out")
    assert field in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_record_nested_too_deeply_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def page(boards: object) -> str:
        # How deep is too deep differs between Python versions.
        raise RecursionError

    monkeypatch.setattr("sadi_lmeval.reports.report.page", page)
    folder = saved(tmp_path / "run", make_record())
    with pytest.raises(UserError, match="nested deeper"):
        report([folder], tmp_path / "out", html=True)
    assert not (tmp_path / "out").exists()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["top_k", "delta", "table", "chosen", "difference"]), inner),
    max_leaves=8,
)  # fmt: skip
fit = st.fixed_dictionaries(
    {},
    optional={
        "selected": anything | st.lists(st.lists(st.integers(-1, 9), max_size=3), max_size=3),
        "source": anything,
        "tuning": anything
        | st.fixed_dictionaries({}, optional={
            "table": anything | st.lists(st.fixed_dictionaries({}, optional={
                "top_k": anything, "delta": anything, "difference": anything}), max_size=4),
            "chosen": anything, "objective": anything}),
        "top_k": anything,
    },
)  # fmt: skip
steerings = st.fixed_dictionaries(
    {},
    optional={
        "parameters": anything | st.just(["top_k", "delta"]),
        "fits": anything | st.lists(anything | fit, max_size=2),
        "masks": anything | st.lists(anything | fit, max_size=2),
        "layers": anything | st.just(4),
        "entries": anything | st.just(200),
    },
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steerings)
def test_whatever_a_record_says_of_its_steering_a_report_is_made(
    tmp_path: Path, steering: dict[str, Any]
) -> None:
    folder = saved(tmp_path / "run", make_record(), make_record(method="sadi", steering=steering))
    assert "| sadi |" in report([folder], tmp_path / "out", html=True, diagnostics=True)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(*[st.none() | st.floats(-1e9, 1e9) | st.sampled_from([0.0, 1.0])] * 2),
        min_size=1,
        max_size=12,
    )
)
def test_whatever_the_values_are_a_report_is_made(
    tmp_path: Path, pairs: list[tuple[float | None, float | None]]
) -> None:
    records = [
        make_record(values=[pair[side] for pair in pairs], method=method)
        for side, method in enumerate(("none", "caa"))
    ]
    folder = saved(tmp_path / "run", *records)
    assert "| caa |" in report([folder], tmp_path / "out", html=True, diagnostics=True)


def test_importing_the_report_loads_no_model_library() -> None:
    code = (
        "import sys, sadi_lmeval.reports.report; "
        "print(*{'torch', 'lm_eval', 'transformers'}.intersection(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == ""
