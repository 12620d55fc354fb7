"""Rows, averages, transfer matrices and the files that hold them."""

from __future__ import annotations

import csv
import io
import json
import math
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
