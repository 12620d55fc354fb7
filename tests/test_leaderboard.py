"""Rows, averages, transfer matrices and the files that hold them."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCardData
from statsmodels.stats.multitest import multipletests

from helpers.records import answered, make_record, scored, two_tasks
from sadi_lmeval.errors import UserError
from sadi_lmeval.records.record import Record
from sadi_lmeval.reports.leaderboard import boards_of
from sadi_lmeval.reports.significance import mean_over_tasks
from sadi_lmeval.reports.tables import comma_separated, json_text, markdown, model_index, shown

pytestmark = pytest.mark.quick


def test_rows_are_methods_and_columns_tasks() -> None:
    (board,) = boards_of(two_tasks())
    assert board.tasks == ["boolq", "rte"]
    assert [row.method for row in board.rows] == ["none", "caa", "iti", "sadi-head"]
    cell = board.rows[3].cells["boolq"]
    assert cell.value == 0.8
    assert cell.stderr == pytest.approx(math.sqrt(0.8 * 0.2 / 39))
    assert cell.comparison is not None
    assert cell.comparison.difference == pytest.approx(0.3)
    assert board.rows[0].cells["boolq"].comparison is None


def test_holm_is_over_the_steered_rows_of_a_column() -> None:
    (board,) = boards_of(two_tasks())
    cells = [row.cells["boolq"] for row in board.rows[1:]]
    raw = [cell.comparison.p for cell in cells if cell.comparison is not None]
    assert [cell.p_holm for cell in cells] == pytest.approx(multipletests(raw, method="holm")[1])
    assert [cell.mark for cell in cells] == ["↓*", "", "↑*"]


def test_the_average_is_of_rows_with_all_tasks_and_has_the_error_of_a_mean() -> None:
    (board,) = boards_of(two_tasks())
    none, _, iti, sadi = board.rows
    assert none.average is not None
    assert sadi.average is not None
    assert iti.average is None
    assert sadi.average.value.value == pytest.approx((32 + 11) / 80)
    errors = [cell.stderr or 0 for cell in sadi.cells.values()]
    expected = math.sqrt(errors[0] ** 2 + errors[1] ** 2) / 2
    assert sadi.average.value.stderr == pytest.approx(expected)
    assert sadi.average.difference is not None
    assert sadi.average.difference.value == pytest.approx((12 + 1) / 80)
    assert none.average.difference is None


def test_tasks_over_the_same_documents_are_not_two_samples() -> None:
    same = [f"question {i}" for i in range(40)]
    records = [
        scored(right, method, task, documents=same)
        for task in ("mc1", "mc2")
        for method, right in (("none", 20), ("iti", 26))
    ]
    (board,) = boards_of(records)
    for row in board.rows:
        assert row.average is not None
        assert row.average.value.stderr == pytest.approx(row.cells["mc1"].stderr)
    gain, compared = board.rows[1].average, board.rows[1].cells["mc1"].comparison
    assert gain is not None
    assert gain.difference is not None
    assert compared is not None
    assert gain.difference.stderr == pytest.approx(compared.stderr)
    # The second task's documents all the other way round: what one gains the other loses.
    mirrored = [replace(r, values=[1 - (v or 0) for v in r.values], metrics={"acc": [0.5, None]})
                if r.task == "mc2" else r for r in records]  # fmt: skip
    (board,) = boards_of(mirrored)
    assert board.rows[1].average is not None
    none = board.rows[1].average.difference
    assert none is not None
    assert none.value == 0
    assert none.stderr == pytest.approx(0, abs=1e-12)
    assert none.p == 1


def test_the_p_of_an_average_keeps_its_level_where_tasks_share_their_documents() -> None:
    rng = np.random.default_rng(0)
    runs, low = 400, 0
    for _ in range(runs):
        shared = rng.normal(size=60)
        tasks = [{str(i): [x] for i, x in enumerate(shared + rng.normal(0, 0.2, 60))}
                 for _ in range(3)]  # fmt: skip
        found = mean_over_tasks(tasks)
        assert found.p is not None
        low += found.p < 0.05
    assert low / runs == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / runs))


def test_tasks_that_are_not_shares_are_not_averaged() -> None:
    records = [*two_tasks(), make_record(task="wiki", values=[12.0, 9.0], higher_is_better=False)]
    (board,) = boards_of(records)
    assert board.scale("wiki") == 1
    assert all(row.average is None for row in board.rows)
    assert "| 10.500 ± 1.500 |" in markdown([board])


def test_of_a_metric_where_less_is_better_the_least_is_best() -> None:
    records = [
        make_record(values=[5.0, 6.0], higher_is_better=False),
        make_record(values=[3.0, 4.0], higher_is_better=False, method="iti"),
    ]
    (board,) = boards_of(records)
    assert board.best("boolq") == 3.5
    assert board.rows[1].cells["boolq"].better


def test_a_transfer_is_no_row_but_a_cell_of_its_methods_matrix() -> None:
    (board,) = boards_of(two_tasks())
    (transfer,) = board.transfers
    assert transfer.method == "sadi-head"
    differences = {
        key: cell.comparison.difference
        for key, cell in transfer.cells.items()
        if cell.comparison is not None
    }
    assert differences == pytest.approx(
        {("boolq", "rte"): 0.05, ("rte", "boolq"): 0.325, ("boolq", "boolq"): 0.3,
         ("rte", "rte"): 0.025}
    )  # fmt: skip
    text = markdown([board])
    assert "| fitted on \\ scored on | boolq | rte |" in text
    assert "| boolq | +30.0 ↑* | +5.0 |" in text


def test_the_table_says_what_chance_makes_of_several_columns() -> None:
    said = "10 % of tables of 2 columns"
    assert said in markdown(boards_of(two_tasks()))
    one = [record for record in two_tasks() if {record.task, record.mask_from} <= {"boolq", None}]
    assert "of tables of" not in markdown(boards_of(one))


def test_the_markdown_has_the_best_in_bold_and_marks_what_is_significant() -> None:
    text = markdown(boards_of(two_tasks()))
    assert "| method | boolq (acc) | rte (acc) | average |" in text
    assert "| unsteered | 50.0 ± 8.0 | 25.0 ± 6.9 | 37.5 ± 5.3 |" in text
    assert (
        "| sadi-head | **80.0 ± 6.4** (+30.0, p 0.0015) ↑* | **27.5 ± 7.1** (+2.5, p 1) "
        "| **53.8 ± 4.8** (+16.2, p 0.00014) ↑* |"
    ) in text
    assert (
        "| caa | 20.0 ± 6.4 (-30.0, p 0.0015) ↓* | 25.0 ± 6.9 (0.0, p 1) "
        "| 22.5 ± 4.7 (-15.0, p 0.00014) ↓* |"
    ) in text
    assert "Majority label: boolq 50.0 % (no), rte 50.0 % (no)." in text


def test_where_all_are_alike_none_is_bold() -> None:
    assert "**" not in markdown(boards_of([scored(20, "none"), scored(20, "iti")]))


def test_runs_are_tables_of_their_own() -> None:
    another = {"model": "another", "revision": None}
    one, other = boards_of([*two_tasks(), scored(30, "none", run="other", model=another)])
    assert (one.model, other.model) == ("tiny", "another")
    assert other.tasks == ["boolq"]
    assert "## another" in markdown([one, other])


def test_a_table_without_the_unsteered_model_compares_nothing() -> None:
    (board,) = boards_of([scored(20, "iti")])
    cell = board.rows[0].cells["boolq"]
    assert (cell.comparison, cell.p_holm, cell.significant) == (None, None, False)
    assert "| iti | 50.0 ± 8.0 |" in markdown([board])


def test_different_documents_are_refused() -> None:
    other = replace(scored(20, "iti"), documents=[f"other {i}" for i in range(40)])
    with pytest.raises(UserError, match=r"boolq: iti \(40 documents.*none.*same documents"):
        boards_of([scored(20, "none"), other])


def test_a_value_that_is_not_finite_is_shown_as_such_and_warned_of() -> None:
    text = markdown(boards_of([make_record(), make_record(values=[1, None, 0, 1], method="caa")]))
    assert "| caa | n/a |" in text
    assert "- caa on boolq: 1 of 4 documents have no finite value" in text


def test_markdown_shows_names_as_they_are_and_nothing_else() -> None:
    hostile = "a|b`c\n<script>*d* [x](http://y) \x1b[31m"
    text = markdown(
        boards_of([make_record(task=hostile, method=hostile, model={"model": hostile})])
    )
    shown_name = "a\\|b\\`c &lt;script&gt;\\*d\\* \\[x\\](http://y)  \\[31m"
    assert f"| {shown_name} |" in text
    assert f"## {shown_name}" in text
    assert "<script>" not in text
    assert "\x1b" not in text


def test_the_csv_has_a_line_a_model_method_and_task() -> None:
    lines = list(csv.DictReader(io.StringIO(comma_separated(boards_of(two_tasks())))))
    assert len(lines) == 9
    assert {(n["method"], n["task"], n["mask_from"]) for n in lines} >= {
        ("sadi-head", "boolq", ""), ("sadi-head", "rte", "boolq")
    }  # fmt: skip
    line = next(n for n in lines if n["method"] == "caa" and n["task"] == "boolq")
    assert float(line["difference"]) == pytest.approx(-0.3)
    assert float(line["p"]) == pytest.approx(2 / 2**12)
    assert line["test"] == "mcnemar"


@pytest.mark.parametrize("name", ["=1+2", "+cmd", "-2+3", "@SUM(A1)", "\tx"])
def test_the_csv_has_no_formulas(name: str) -> None:
    (line,) = csv.DictReader(io.StringIO(comma_separated(boards_of([make_record(task=name)]))))
    assert line["task"] == f"'{name}"
    assert line["value"] == "0.75"


def test_the_csv_keeps_commas_quotes_and_newlines_of_names() -> None:
    hostile = 'a,"b"\nc'
    (line,) = csv.DictReader(io.StringIO(comma_separated(boards_of([make_record(task=hostile)]))))
    assert line["task"] == hostile


def test_the_json_says_how_to_repeat_each_cell() -> None:
    steering = {
        "method": "sadi", "parameters": ["top_k", "delta"], "folds": 2, "top_k": [6, 4],
        "fits": [{"source": "x", "top_k": 6, "delta": 9.0, "selected": [[0, 1]], "sha256": "5ha",
                   "cache_key": "key", "tuning": {"chosen": {"top_k": 6}, "table": [{}]}}],
    }  # fmt: skip
    records = [scored(20, "none"), scored(30, "sadi-head", steering=steering)]
    (run,) = json.loads(json_text(boards_of(records)))["runs"]
    cell = run["rows"][1]["cells"]["boolq"]
    assert cell["value"] == 0.75
    assert cell["diagnosis"]["wrong_to_right"] == 10
    repeat = cell["repeat"]
    assert repeat["model"]["weights_digest"] == "ab12"
    assert repeat["command"] == "sadi-lmeval compare --tasks boolq"
    assert repeat["steering"]["folds"] == 2
    (fit,) = repeat["steering"]["fits"]
    assert (fit["sha256"], fit["cache_key"]) == ("5ha", "key")
    assert fit["tuning"]["chosen"] == {"top_k": 6}
    assert "table" not in fit["tuning"]
    assert "selected" not in fit


def test_the_model_index_is_metadata_that_the_hub_library_reads() -> None:
    text = model_index(boards_of(two_tasks()))
    card = ModelCardData(**yaml.safe_load(text))
    assert card.model_name == "tiny"
    assert card.eval_results is not None
    assert len(card.eval_results) == 7  # transfers are not results of the model
    assert {(e.dataset_type, e.metric_name, e.metric_value) for e in card.eval_results} >= {
        ("boolq", "acc (unsteered)", 0.5), ("boolq", "acc (sadi-head)", 0.8)
    }  # fmt: skip
    assert card.to_yaml() == text.strip()


def test_several_runs_are_several_entries_of_the_model_index() -> None:
    boards = boards_of([make_record(), make_record(run="b", model={"model": "another"})])
    names = [entry["name"] for entry in yaml.safe_load(model_index(boards))["model-index"]]
    assert names == ["tiny", "another"]


@pytest.mark.parametrize(
    ("number", "scale", "sign", "text"),
    [
        (0.4123, 100, False, "41.2"),
        (-0.0001, 100, True, "0.0"),
        (0.0321, 100, True, "+3.2"),
        (-1.5, 1, True, "-1.500"),
        (None, 100, True, "n/a"),
    ],
)
def test_numbers_are_shown_alike(number: float | None, scale: int, sign: bool, text: str) -> None:
    assert shown(number, scale, sign) == text


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"task_digest": "another"}, "definitions of the task"),
        ({"pairs_digests": ["another"]}, "pairs"),
        ({"steering": {"method": "caa", "recipe": "r", "recipe_digest": "another"}}, "recipes"),
    ],
)
def test_records_of_other_definitions_recipes_or_pairs_are_refused(
    changes: dict[str, Any], what: str
) -> None:
    steering = {"method": "iti", "recipe": "r", "recipe_digest": "one"}
    mine = scored(3, "iti", pairs_digests=["one"], steering=steering)
    same: dict[str, Any] = {"pairs_digests": ["one"], "steering": {**steering, "method": "caa"}}
    boards_of([scored(2, "none"), mine, scored(4, "caa", **same)])
    with pytest.raises(UserError, match=f"boolq: caa and [a-z]+ are of different {what}"):
        boards_of([scored(2, "none"), mine, scored(4, "caa", **{**same, **changes})])


def test_records_that_say_nothing_of_their_pairs_are_compared() -> None:
    boards_of([scored(3, name, task_digest="", pairs_digests=[]) for name in ("none", "caa")])


# ------------------------------------------------------------------ held-out documents


def tuned(*held_out: tuple[float | None, float | None], objective: str = "metric") -> Record:
    """A steered record; the unsteered model had these scores, ± errors, on held-out documents."""
    fits = [
        {
            "tuning": {
                "objective": objective,
                "documents": 100,
                "chosen": {"delta": 9.0},
                "table": [{"delta": 0.0, "score": score, "stderr": stderr}],
            }
        }
        for score, stderr in held_out
    ]
    steering = {"method": "sadi", "parameters": ["delta"], "fits": fits}
    return answered([1, 0] * 50, [1, 1] * 50, method="sadi", steering=steering)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (tuned((0.75, 0.04)), "0.75"),
        (tuned((0.25, 0.04)), "0.25"),
        (tuned((0.6, 0.05)), None),
        (tuned((0.5, 0.0)), None),
        # of two folds the mean counts, with the error of that
        (tuned((0.7, 0.06), (0.7, 0.06)), "0.7"),
        (tuned((0.9, 0.06), (0.1, 0.06)), None),
        # another measure, or none that is known
        (tuned((0.75, 0.04), objective="likelihood"), None),
        (tuned((0.75, None)), None),
        (tuned((None, None), (0.75, 0.04)), None),
        (tuned(), None),
    ],
)
def test_held_out_documents_that_are_easier_or_harder_than_the_scored_ones_are_told(
    record: Record, said: str | None
) -> None:
    [board] = boards_of([answered([1, 0] * 50, [1, 1] * 50), record])
    found = [warning for warning in board.warnings if "held-out" in warning]
    if said is None:
        assert found == []
    else:
        [warning] = found
        assert f"boolq: the unsteered model scores {said} on the held-out documents" in warning
        assert "0.5 on the scored ones" in warning


def test_held_out_documents_of_a_metric_that_is_better_when_lower_are_compared_as_it_is() -> None:
    unsteered = answered([1, 0] * 50, [1, 1] * 50, higher_is_better=False)
    for score, told in ((-0.5, False), (0.5, True)):
        steered = replace(tuned((score, 0.04)), higher_is_better=False)
        [board] = boards_of([unsteered, steered])
        assert any("held-out" in warning for warning in board.warnings) is told


# ------------------------------------------------------------------ controls


def with_control(
    right: int, shuffled: int, method: str = "iti", task: str = "boolq"
) -> list[Record]:
    """A method and its control, by how many of forty answers are right."""
    return [scored(right, method, task), scored(shuffled, f"{method}-shuffled", task)]


def daggers(records: list[Record], task: str = "boolq") -> list[str]:
    (board,) = boards_of(records)
    return [row.method for row in board.rows if "†" in row.cells[task].mark]


@pytest.mark.parametrize(
    ("right", "shuffled", "fails"),
    [(32, 20, False), (32, 31, True), (32, 32, True), (20, 32, True)],
)
def test_a_method_that_does_not_beat_its_own_shuffled_control_is_marked_and_said_not_to(
    right: int, shuffled: int, fails: bool
) -> None:
    records = [scored(20, "none"), *with_control(right, shuffled), scored(33, "caa")]
    assert daggers(records) == (["iti"] if fails else [])
    boards = boards_of(records)
    text = markdown(boards)
    [row] = [line for line in text.splitlines() if line.startswith("| iti |")]
    assert row.endswith("† |") is fails
    assert "†: does not beat its own shuffled control (NAME-shuffled:" in text
    said = (
        f"- iti does not beat iti-shuffled: boolq ({shown((right - shuffled) / 40, 100, True)}, p "
    )
    assert (said in text) is fails
    line = next(n for n in csv.DictReader(io.StringIO(comma_separated(boards)))
                if n["method"] == "iti")  # fmt: skip
    assert line["beats_control"] == str(not fails)
    assert float(line["control_difference"]) == pytest.approx((right - shuffled) / 40)
    [run] = json.loads(json_text(boards))["runs"]
    assert len(run["not_beating_control"]) == fails
    cell = next(r for r in run["rows"] if r["method"] == "iti")["cells"]["boolq"]
    assert cell["beats_control"] is not fails


def test_of_a_metric_that_is_better_when_lower_less_beats_the_control() -> None:
    for right, fails in ((8, False), (32, True)):
        records = [scored(20, "none"), *with_control(right, 20)]
        records = [replace(r, higher_is_better=False) for r in records]
        assert daggers(records) == (["iti"] if fails else [])


def test_methods_against_their_controls_are_one_family_of_a_column() -> None:
    records = [scored(20, "none"), *with_control(26, 20), *with_control(30, 20, "caa")]
    (board,) = boards_of(records)
    found = {row.method: row.cells["boolq"].control for row in board.rows}
    raw = [2 / 2**10, 2 / 2**6]  # exact McNemar, of ten and of six that differ
    expected = multipletests(raw, method="holm")[1]
    for name, p in zip(("caa", "iti"), expected, strict=True):
        control = found[name]
        assert control is not None
        assert control.p_holm == pytest.approx(p)
    assert found["none"] is found["iti-shuffled"] is None


def test_controls_cost_methods_no_power() -> None:
    methods = [scored(20, "none"), scored(27, "iti"), scored(28, "caa")]
    controls = [scored(21, f"{name}-shuffled") for name in ("iti", "caa")]
    controls += [scored(22, "caa-random"), scored(30, "prompt-only")]

    def adjusted(records: list[Record]) -> dict[str, float | None]:
        (board,) = boards_of(records)
        return {row.method: row.cells["boolq"].p_holm for row in board.rows}

    alone, all_of_them = adjusted(methods), adjusted([*methods, *controls])
    assert {name: all_of_them[name] for name in alone} == alone
    of_controls = adjusted([methods[0], *controls])
    assert {name: all_of_them[name] for name in of_controls} == of_controls
    assert "Controls are adjusted among themselves." in markdown(boards_of([*methods, *controls]))
    assert "shuffled" not in markdown(boards_of(methods))


def test_an_average_is_compared_with_that_of_its_control() -> None:
    records = [scored(20, "none"), scored(10, "none", "rte")]
    records += [*with_control(32, 20), *with_control(30, 12, task="rte")]
    records += [*with_control(32, 20, "caa"), *with_control(12, 32, "caa", "rte")]
    (board,) = boards_of(records)
    average = {row.method: row.average for row in board.rows}
    for name, beats in (("iti", True), ("caa", False)):
        mine = average[name]
        assert mine is not None
        assert mine.control is not None
        assert mine.control.beats is beats
        assert ("†" in mine.mark) is not beats
    text = markdown([board])
    assert "- caa does not beat caa-shuffled: rte (-50.0, p " in text
    assert "the average (-10.0, p " in text
    assert "- iti does not" not in text


def test_a_control_without_its_method_or_of_other_documents_is_a_row_and_nothing_else() -> None:
    assert daggers([scored(20, "none"), scored(22, "iti-shuffled"), scored(20, "caa")]) == []
    other = replace(scored(20, "iti-shuffled"), documents=[f"other {i}" for i in range(40)])
    assert daggers([scored(20, "iti"), other]) == []


def test_a_control_without_any_finite_value_is_not_beaten() -> None:
    lost = replace(scored(20, "iti-shuffled"), values=[None] * 40)
    records = [scored(20, "none"), scored(30, "iti"), lost]
    assert daggers(records) == ["iti"]
    assert "- iti does not beat iti-shuffled: boolq (n/a, p n/a)" in markdown(boards_of(records))


# ------------------------------------------------------------------ elsewhere


def with_side_effects() -> list[Record]:
    """Two methods fitted to boolq and rte, both scored on copa and sst2 too."""
    records = [scored(20, "none", task) for task in ("boolq", "rte", "copa", "sst2")]
    records += [scored(21, "prompt-only", task) for task in ("boolq", "rte", "copa", "sst2")]
    for method, change in (("iti", 4), ("caa", -12)):
        records += [scored(30, method, task) for task in ("boolq", "rte")]
        records += [
            scored(20 + change, method, task, mask_from=own)
            for own in ("boolq", "rte")
            for task in ("copa", "sst2")
        ]
    return records


def test_side_effects_are_a_column_and_their_tasks_are_none() -> None:
    (board,) = boards_of(with_side_effects())
    assert board.tasks == ["boolq", "rte"]
    found = {row.method: row.elsewhere for row in board.rows}
    assert found["none"] is None
    for method, change in (("iti", 4), ("caa", -12), ("prompt-only", 1)):
        mine = found[method]
        assert mine is not None
        assert mine.difference.value == pytest.approx(change / 40)
    # Twice the same documents of two tasks are two samples, not four.
    caa, iti = found["caa"], found["iti"]
    assert caa is not None
    assert iti is not None
    error = math.sqrt(0.3 * 0.7 / 39)
    assert caa.difference.stderr == pytest.approx(error / math.sqrt(2))
    raw = [caa.difference.p, iti.difference.p]
    assert [caa.p_holm, iti.p_holm] == pytest.approx(multipletests(raw, method="holm")[1])
    assert (caa.mark, iti.mark) == ("↓*", "↑*")
    text = markdown([board])
    assert "| method | boolq (acc) | rte (acc) | average | elsewhere |" in text
    assert re.search(r"^\| unsteered \|.*\|  \|$", text, re.MULTILINE)
    assert re.search(r"^\| caa \|.*\| -30\.0 ± 5\.2 \(p .*\) ↓\* \|$", text, re.MULTILINE)
    assert "Elsewhere: the mean difference from the unsteered model" in text
    assert text.count("### Transfer of") == 2
    assert "| fitted on \\ scored on | boolq | copa | rte | sst2 |" in text
    lines = list(csv.DictReader(io.StringIO(comma_separated([board]))))
    assert len(lines) == len(with_side_effects())
    [run] = json.loads(json_text([board]))["runs"]
    assert {cell["method"] for cell in run["aside"]} == {"none", "prompt-only"}
    assert {cell["task"] for cell in run["aside"]} == {"copa", "sst2"}


def test_a_transfer_has_the_column_too() -> None:
    records = [scored(20, name, task) for name in ("none", "caa") for task in ("boolq", "rte")]
    records += [scored(24, "caa", "rte", mask_from="boolq")]
    records += [scored(22, "caa", "boolq", mask_from="rte")]
    (board,) = boards_of(records)
    assert board.tasks == ["boolq", "rte"]
    assert board.aside == []
    mine = board.rows[1].elsewhere
    assert mine is not None
    assert mine.difference.value == pytest.approx(3 / 40)


def test_what_is_not_whole_or_no_share_has_no_mean_elsewhere() -> None:
    records = with_side_effects()
    lost = [r for r in records if (r.method, r.task, r.mask_from) != ("caa", "copa", "rte")]
    (board,) = boards_of(lost)
    assert [row.method for row in board.rows if row.elsewhere is not None] == ["iti", "prompt-only"]
    odd = [replace(r, values=[5.0 * (v or 0) for v in r.values]) if r.task == "copa" else r
           for r in records]  # fmt: skip
    (board,) = boards_of(odd)
    assert not board.has_elsewhere
    assert "elsewhere" not in markdown([board])
