"""``baseline=true``: the unsteered model's rows beside the steered ones, in one run and table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval import evaluator
from lm_eval.utils import make_table

from conftest import Evaluate
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.arm import read_arm

STEERED = {"top_k": 4, "delta": 30}


def of(results: dict[str, Any], task: str, end: str = "") -> dict[str, Any]:
    """The task's own numbers, or those whose metric's name ends so."""
    found = {}
    for key, value in results["results"][task].items():
        metric, comma, name = key.partition(",")
        stem, stderr, _ = metric.partition("_stderr")
        if comma and stem.endswith(end) and (end or not stem.endswith(("steered", "difference"))):
            found[f"{stem.removesuffix(end)}{stderr},{name}"] = value
    return found


@pytest.mark.parametrize("task", ["tiny_choice", "tiny_folds", "tiny_text", "tiny_word"])
def test_both_rows_are_those_of_two_runs(evaluate: Evaluate, task: str) -> None:
    """To the bit; of choices, texts and a loglikelihood; the steered ones as without it."""
    both = evaluate(task, limit=20, baseline=True, **STEERED)
    alone = evaluate(task, limit=20, **STEERED)
    unsteered = evaluate(task, limit=20, method="none")
    assert of(both, task) == of(alone, task)
    assert of(both, task, "_unsteered") == of(unsteered, task)
    assert both["config"]["sadi"] == alone["config"]["sadi"]
    names = {key.partition(",")[0] for key in of(alone, task) if "_stderr" not in key}
    for name in names & {"acc", "exact_match"}:
        pairs = [
            [float(sample[name]) for sample in run["samples"][task]] for run in (alone, unsteered)
        ]
        [differences] = np.diff(pairs[::-1], axis=0)
        [value] = [v for k, v in of(both, task, "_difference").items() if k.startswith(f"{name},")]
        assert value == pytest.approx(differences.mean())
        told = [sample[f"{name}_difference"] for sample in both["samples"][task]]
        assert told == pytest.approx(differences)


def test_the_difference_s_error_is_that_of_pairs(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = evaluator.evaluate
    monkeypatch.setattr(
        evaluator, "evaluate", lambda **given: run(**{**given, "bootstrap_iters": 10})
    )
    results = evaluate("tiny_choice", baseline=True, **STEERED)
    mine = np.array([s["acc_difference"] for s in results["samples"]["tiny_choice"]])
    assert mine.any(), "nothing is steered"
    row = results["results"]["tiny_choice"]
    error = mine.std(ddof=1) / np.sqrt(len(mine))
    assert row["acc_difference_stderr,none"] == pytest.approx(error)


def test_the_harness_s_table_has_the_rows(evaluate: Evaluate) -> None:
    results = evaluate("tiny_choice", limit=6, baseline=True, **STEERED)
    cells = [[cell.strip() for cell in line.split("|")] for line in make_table(results).split("\n")]
    metrics = [line[5:7] for line in cells[2:] if len(line) > 6]
    assert metrics == [["acc", "↑"], ["acc_difference", "↑"], ["acc_unsteered", "↑"]]


def test_where_nothing_is_steered_nothing_is_scored_twice(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sadi_lmeval.model import SteeredModel

    calls: list[str] = []
    scores = SteeredModel._scores

    def noted(self: Any, requests: Any, which: Any, label: str, quiet: bool) -> Any:
        calls.append(label)
        return scores(self, requests, which, label, quiet)

    monkeypatch.setattr(SteeredModel, "_scores", noted)
    results = evaluate("tiny_choice", limit=6, baseline=True, top_k=1, delta=0)
    assert len(calls) == 1
    row = results["results"]["tiny_choice"]
    assert (row["acc_unsteered,none"], row["acc_difference,none"]) == (row["acc,none"], 0)


@pytest.mark.parametrize("task", ["tiny_choice", "tiny_text"])
def test_the_harness_s_response_cache_keeps_both(
    evaluate: Evaluate, tmp_path: Path, task: str
) -> None:
    settings = {"use_cache": str(tmp_path / "responses")}
    first, second = (
        evaluate(task, limit=6, settings=settings, baseline=True, **STEERED) for _ in range(2)
    )
    assert first["results"] == second["results"]
    assert of(first, task, "_unsteered")


def test_a_run_without_metrics_has_none_of_these_either(evaluate: Evaluate) -> None:
    settings = {"predict_only": True}
    results = evaluate("tiny_text", limit=6, settings=settings, baseline=True, **STEERED)
    assert not of(results, "tiny_text", "_unsteered")
    assert len(results["samples"]["tiny_text"]) == 6


def test_a_task_that_is_scored_again_has_its_own_numbers_alone(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same task object, in a run of another model."""
    objects = []
    evaluate_tasks = evaluator.evaluate

    def kept(**arguments: Any) -> Any:
        objects.append(arguments["task_dict"])
        return evaluate_tasks(**{**arguments, "task_dict": objects[0]})

    monkeypatch.setattr(evaluator, "evaluate", kept)
    first = evaluate("tiny_choice", limit=6, baseline=True, **STEERED)
    second = evaluate("tiny_choice", limit=6, model="hf")
    assert "acc_unsteered,none" in first["results"]["tiny_choice"]
    assert "acc_unsteered,none" not in second["results"]["tiny_choice"]
    assert "acc_unsteered" not in second["higher_is_better"]["tiny_choice"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"baseline": "perhaps"}, "baseline=perhaps: must be true or false"),
        ({"baseline": True, "method": "none"}, "baseline=True: method=none is the baseline"),
    ],
)
def test_what_it_may_not_be_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_arm("sadi", given)
