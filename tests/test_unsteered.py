"""Whether a run says that settings were chosen on documents unlike the scored ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_ind

from conftest import Evaluate
from helpers.tasks import make_task
from sadi_lmeval.passes import engine
from sadi_lmeval.passes.scoring import log_likelihoods
from sadi_lmeval.records.steering import UnsteeredRecord

WORDS = "the cat sees a dog and the bird likes fish under one old tree by river".split()
GRID = {"grid": "1x1/2", "n_tune": 20, "n_pairs": 12}
RunTask = Callable[..., dict[str, Any]]


def rows(first: int, last: int) -> list[dict[str, Any]]:
    return [
        {
            "question": " ".join([*WORDS[i % 13 :], *str(i)]),
            "choices": [WORDS[(i + 5 * k) % 16] for k in range(3)],
            "label": 0,
        }
        for i in range(first, last)
    ]


@pytest.fixture
def preferred(tmp_path: Path, run_task: RunTask) -> list[dict[str, Any]]:
    """Rows that the unsteered model has right, all of them."""
    every = rows(0, 80)
    make_task(tmp_path, "asked", {"validation": every})
    for sample in run_task("asked", "hf")["samples"]["asked"]:
        values = [value for ((value, _),) in sample["resps"]]
        every[sample["doc_id"]]["label"] = values.index(max(values))
    return every


def entry(results: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = results["config"]["sadi"][name]
    return found


def test_a_run_says_that_held_out_documents_are_easier_than_the_scored_ones(
    tmp_path: Path,
    run_task: RunTask,
    preferred: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong = [{**row, "label": (row["label"] + 1) % 3} for row in preferred]
    make_task(tmp_path, "unlike", {"train": preferred[:40], "validation": wrong[40:]})
    make_task(tmp_path, "alike", {"train": preferred[:40], "validation": preferred[40:]})
    with caplog.at_level(logging.WARNING, logger="lm_eval.sadi"):
        said = entry(run_task("unlike", "hf-sadi", **GRID), "unlike")["unsteered"]
    assert (said["held_out"], said["scored"]) == (1, 0)
    assert (said["held_out_documents"], said["scored_documents"]) == (20, 20)
    assert said["p"] < 1e-6
    [line] = [line for line in caplog.messages if "rarely by chance" in line]
    assert line.startswith("Task unlike: the unsteered model scores 1 on the held-out documents")
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="lm_eval.sadi"):
        said = entry(run_task("alike", "hf-sadi", **GRID), "alike")["unsteered"]
    assert (said["held_out"], said["scored"], said["p"]) == (1, 1, 1)
    assert "rarely by chance" not in caplog.text


def test_the_scored_documents_are_those_of_the_run_and_their_score_is_the_unsteered_model_s(
    evaluate: Evaluate,
) -> None:
    for name in ("tiny_choice", "tiny_folds"):
        plain = evaluate(name, model="hf", limit=9)["results"][name]
        said = entry(evaluate(name, limit=9, grid="1x4", n_tune=12), name)
        assert said["unsteered"]["scored"] == pytest.approx(plain["acc,none"])
        error = math.sqrt(plain["acc,none"] * (1 - plain["acc,none"]) / 8)
        assert said["unsteered"]["scored_stderr"] == pytest.approx(error)
        assert said["unsteered"]["scored_documents"] == 9
        tables = [fit["tuning"]["table"] for fit in said["fits"]]
        scores = [table[0]["score"] for table in tables]
        assert said["unsteered"]["held_out"] == pytest.approx(sum(scores) / len(scores))


def test_generated_text_is_compared_by_what_its_settings_are_judged_by(evaluate: Evaluate) -> None:
    said = entry(evaluate("tiny_text", grid="1x4", n_tune=12), "tiny_text")
    [fit] = said["fits"]
    assert fit["tuning"]["objective"] == "likelihood"
    assert said["unsteered"]["held_out"] == fit["tuning"]["table"][0]["score"] < 0
    assert said["unsteered"]["scored"] < 0


def test_what_is_known_of_the_scored_documents_is_not_computed_again(
    evaluate: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"grid": "1x4", "n_tune": 12}
    asked: list[int] = []
    inner = log_likelihoods

    def counted(forward: Any, requests: Any, *arguments: Any, **named: Any) -> Any:
        asked.append(len(requests))
        return inner(forward, requests, *arguments, **named)

    monkeypatch.setattr(engine, "log_likelihoods", counted)
    first = entry(evaluate("tiny_choice", **given), "tiny_choice")
    assert sum(asked) == 30 + 30  # of 10 documents: unsteered, and as they are scored
    asked.clear()
    assert entry(evaluate("tiny_choice", **given), "tiny_choice") == first
    assert sum(asked) == 30
    [kept] = (tmp_path / "cache").glob("*.unsteered.json")
    kept.write_bytes(kept.read_bytes()[:-9])
    assert entry(evaluate("tiny_choice", **given), "tiny_choice") == first


def test_where_nothing_is_chosen_or_another_task_is_chosen_on_nothing_is_compared(
    evaluate: Evaluate,
) -> None:
    for arguments in (
        {"top_k": 1, "delta": 2},
        {"method": "none"},
        {"grid": "1x4", "n_tune": 12, "mask_from": "tiny_folds"},
    ):
        assert "unsteered" not in entry(evaluate("tiny_choice", **arguments), "tiny_choice")


@pytest.mark.quick
def test_the_p_is_that_of_two_samples_of_one_distribution() -> None:
    for right, of, right_of_others, others in ((70, 100, 50, 100), (30, 60, 21, 40)):
        samples = [[1] * n + [0] * (m - n) for n, m in ((right, of), (right_of_others, others))]
        numbers = [(sum(s) / len(s), _stderr(s), len(s)) for s in samples]
        expected = ttest_ind(*samples).pvalue
        assert UnsteeredRecord(*numbers[0], *numbers[1]).p == pytest.approx(expected, rel=0.2)


@pytest.mark.quick
@pytest.mark.parametrize("few", [1, 4])
def test_a_few_documents_that_are_all_right_are_no_evidence(few: int) -> None:
    assert UnsteeredRecord(0.7, 0.046, 100, 1.0, 0.0, few).p > 0.1
    assert UnsteeredRecord(0.7, 0.046, 0, 1.0, 0.0, few).p == 1


def _stderr(sample: list[int]) -> float:
    mean = sum(sample) / len(sample)
    return math.sqrt(mean * (1 - mean) / (len(sample) - 1))
