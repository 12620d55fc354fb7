"""Reports come from folders of records alone, and are written whole or not at all."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.records import make_record, scored, two_tasks
from sadi_lmeval.errors import UserError
from sadi_lmeval.records.record import (
    FOLDER,
    FORMAT,
    Record,
    _digest,
    file_name,
    load_record,
    load_records,
    save_record,
    to_json,
)
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
        "found": anything | st.fixed_dictionaries({"rows": st.lists(st.lists(
            st.floats(-1e299, 1e299) | st.integers(-1, 1), max_size=4), max_size=5)},
            optional={"width": anything | st.just(4), "name": anything}),
        "tuning": anything
        | st.fixed_dictionaries({}, optional={
            "table": anything | st.lists(st.fixed_dictionaries({}, optional={
                "top_k": anything, "delta": anything, "documents": anything,
                "difference": anything | st.floats(-1e299, 1e299),
                "difference_stderr": anything | st.floats(-1e299, 1e299)}), max_size=4),
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


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steerings)
def test_whatever_a_record_says_of_its_steering_a_report_is_made(
    tmp_path: Path, steering: dict[str, Any]
) -> None:
    folder = saved(tmp_path / "run", make_record(), make_record(method="sadi", steering=steering))
    assert "| sadi |" in report([folder], tmp_path / "out", html=True, diagnostics=True)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


# ------------------------------------------------------------------ records of the release before

EARLIER = json.loads((Path(__file__).parent / "records_of_format_1.json").read_text("utf-8"))
"""A comparison of two tasks with ``--transfer``, and its leaderboard, as release 0.1.0 wrote them
(commit 488ebeb), but for the path of a folder in their commands."""


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    folder = tmp_path / "earlier"
    (folder / FOLDER).mkdir(parents=True)
    for record in EARLIER["records"]:
        path = folder / FOLDER / file_name(record["task"], record["method"], record["mask_from"])
        path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n")
    return folder


def test_records_of_format_1_are_read_with_all_that_they_say(earlier: Path) -> None:
    for whole in EARLIER["records"]:
        assert whole["format"] == "sadi-lmeval record 1"
        assert not {"task_digest", "pairs_digests"} & whole.keys()
        name = file_name(whole["task"], whole["method"], whole["mask_from"])
        record = load_record(earlier / FOLDER / name)
        assert (record.task_digest, record.pairs_digests) == ("", [])
        content = to_json(record)
        known = whole.keys() - {"format", "sha256", "steering"}
        assert {key: content[key] for key in known} == {key: whole[key] for key in known}
        said = {**whole["steering"]}
        fits = {"fits": said.pop("masks")} if "masks" in said else {}
        assert len(fits) == (whole["method"] != "none")
        now = content["steering"]
        assert now == {**now, **said, **fits}
        new = now.keys() - (said.keys() | fits.keys())
        assert {key: now[key] for key in new if now[key]} == {}


def test_records_of_format_1_give_the_leaderboard_that_they_gave(
    earlier: Path, tmp_path: Path
) -> None:
    text = report([earlier], tmp_path / "out", html=True, diagnostics=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*FILES, "report.html"]
    for method in ("none", "sadi-head", "caa"):
        assert f"tiny, {method} on tiny_folds: acc " in text
    board = (tmp_path / "out" / "leaderboard.md").read_text("utf-8")
    # Steered rows are now in the order of their names, and transfers have a column and its legend.
    conditions, table, legend, *rest = board.split("\n\n")[1:]
    rows = [line.rsplit("|", 2)[0] + "|" for line in table.splitlines()]
    assert table.splitlines()[0] == f"{rows[0]} elsewhere |"
    before, _, after = legend.partition(" Elsewhere: ")
    legend = before + after[after.index(" In brackets") :]
    told = ["## tiny", conditions, "\n".join(rows), legend, *rest]
    expected = EARLIER["leaderboard"].splitlines()
    assert sorted("\n\n".join(told).splitlines()) == sorted(expected)


def test_a_record_of_format_1_is_written_as_one_of_today_s(earlier: Path, tmp_path: Path) -> None:
    records = load_records([earlier])
    again = saved(tmp_path / "again", *records)
    assert load_records([again]) == records
    for path in (again / FOLDER).iterdir():
        assert json.loads(path.read_text())["format"] == FORMAT
    for folder in (earlier, again):
        report([folder], tmp_path / f"{folder.name}_out", html=True)
    for path in (tmp_path / "again_out").iterdir():
        assert path.read_bytes() == (tmp_path / "earlier_out" / path.name).read_bytes()


def test_a_damaged_record_of_format_1_is_refused(earlier: Path, tmp_path: Path) -> None:
    path = earlier / FOLDER / "tiny_folds.caa.json"
    path.write_text(path.read_text().replace('"layer": 1', '"layer": 2'))
    with pytest.raises(UserError, match="does not match its checksum"):
        report([earlier], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ other definitions, other pairs

DEFINED = {
    "method": "x", "recipe": "right_wrong", "recipe_digest": "one", "fits": [{"source": "train"}]
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"task_digest": "another"}, "definitions of the task"),
        ({"steering": {**DEFINED, "recipe_digest": "another"}}, "recipes"),
        ({"pairs_digests": ["a", "c"]}, "pairs"),
        ({"pairs_digests": ["b", "a"]}, "pairs"),
        ({"pairs_digests": ["a"]}, "pairs"),
    ],
)
@pytest.mark.parametrize("mask_from", [None, "rte"])
@pytest.mark.parametrize("folders", [1, 2])
def test_records_of_other_definitions_recipes_or_pairs_are_refused_by_both_names(
    tmp_path: Path, changes: dict[str, Any], what: str, mask_from: str | None, folders: int
) -> None:
    common: dict[str, Any] = {"pairs_digests": ["a", "b"], "steering": DEFINED}
    common["mask_from"] = mask_from
    mine, alike = scored(30, "iti", **common), scored(31, "caa", **common)
    report([saved(tmp_path / "alike", scored(20, "none"), mine, alike)], tmp_path / "alike_out")
    other = scored(31, "caa", **{**common, **changes})
    first = saved(tmp_path / "first", scored(20, "none"), mine)
    second = saved(tmp_path / "second" if folders == 2 else first, other)
    for named in ([first, second], [second, first]) if folders == 2 else ([first],):
        with pytest.raises(UserError) as caught:
            report(named, tmp_path / "out", html=True)
        said = str(caught.value)
        assert "\n" not in said
        # Of what the task is the unsteered record says something too.
        pair = re.match(rf"boolq: ([\w-]+) and ([\w-]+) are of different {what}", said)
        assert pair is not None, said
        assert set(pair.groups()) <= {"caa", "iti", "none"}
        assert "caa" in pair.groups()
        assert len(set(pair.groups())) == 2
        if what != "definitions of the task":
            assert set(pair.groups()) == {"caa", "iti"}
        assert not (tmp_path / "out").exists()


def test_other_pairs_of_another_task_or_run_are_no_contradiction(tmp_path: Path) -> None:
    records = [
        scored(20, "none"),
        scored(30, "iti", pairs_digests=["a"]),
        scored(31, "iti", mask_from="rte", pairs_digests=["b"]),
        scored(31, "iti", "rte", pairs_digests=["b"], task_digest="of rte"),
        scored(31, "caa", run="other", pairs_digests=["c"], task_digest="later"),
    ]
    assert "| iti |" in report([saved(tmp_path / "run", *records)], tmp_path / "out")


def test_importing_the_report_loads_no_model_library() -> None:
    code = (
        "import sys, sadi_lmeval.reports.report; "
        "print(*{'torch', 'lm_eval', 'transformers'}.intersection(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == ""
