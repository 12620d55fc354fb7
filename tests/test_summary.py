"""How a task was steered, in the line that ends a run."""

from __future__ import annotations

import logging
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers.results import masks_of
from sadi_lmeval.harness.run_task import RunTask
from sadi_lmeval.settings import Axes, Axis, Setting
from sadi_lmeval.steering.outcome import Choice, outcome
from sadi_lmeval.steering.steering import _warn_of_chance

SETTING = Setting(2, 1.5)


def said(caplog: pytest.LogCaptureFixture, task: str) -> str:
    begin = f"Task {task}: "
    mine = [r for r in caplog.records if r.name == "lm_eval.sadi" and r.levelno == logging.INFO]
    [line] = [r.getMessage() for r in mine if r.getMessage().startswith(begin)]
    return line.removeprefix(begin)


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "lm_eval.sadi")


def test_a_given_setting_is_named(evaluate: Any, caplog: pytest.LogCaptureFixture) -> None:
    evaluate("tiny_choice", top_k=2, delta=3)
    assert said(caplog, "tiny_choice") == "sadi-head: top_k=2, delta=3 (fit made now)"


def test_a_chosen_one_is_named_with_its_gain_on_held_out_documents(
    evaluate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    results = evaluate("tiny_choice", grid="1/5x-2/3", n_tune=10, rule="best")
    [mask] = masks_of(results, "tiny_choice")
    [cost] = [r.getMessage() for r in caplog.records if "settings are tried" in r.getMessage()]
    assert "4 settings are tried on 10 documents; n_tune=" in cost
    found = said(caplog, "tiny_choice")
    chosen = mask["tuning"]["chosen"]
    if not chosen["top_k"]:
        nothing = "unsteered, as rule best took no setting (fit and choice made now)"
        assert found == f"sadi-head: {nothing}"
        return
    [row] = [r for r in mask["tuning"]["table"] if all(r[n] == v for n, v in chosen.items())]
    assert found == (
        f"sadi-head: top_k={chosen['top_k']}, delta={chosen['delta']:g}; held out "
        f"{row['difference']:+.4f} ± {row['difference_stderr']:.4f} over unsteered on 10 documents "
        "(fit and choice made now)"
    )


def test_nothing_taken_is_said(evaluate: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A setting that changes nothing worth it."""
    evaluate("tiny_choice", grid="1x0.000001", n_tune=10)
    nothing = "sadi-head: unsteered, as rule sure took no setting"
    assert said(caplog, "tiny_choice").startswith(nothing)


def test_each_fold_has_its_own(evaluate: Any, caplog: pytest.LogCaptureFixture) -> None:
    evaluate("tiny_folds", limit=50, top_k=2, delta=3)
    assert said(caplog, "tiny_folds") == (
        "sadi-head: fold 1: top_k=2, delta=3 (fit made now); "
        "fold 2: top_k=2, delta=3 (fit made now)"
    )


def test_the_unsteered_model_is_said_to_be_that(
    evaluate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate("tiny_choice", method="none")
    assert said(caplog, "tiny_choice") == "unsteered"


def test_an_interrupted_run_says_that_nothing_is_lost() -> None:
    script = (
        "from sadi_lmeval.errors import show_user_errors_as_one_line as show\n"
        "show()\n"
        "raise KeyboardInterrupt"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines() == [
        "sadi-lmeval: interrupted; fits and tried settings are kept: the same command continues "
        "with them"
    ]


def test_what_comes_out_of_the_cache_is_said(
    evaluate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = {"grid": "1x4", "n_tune": 10, "element": "neuron"}
    for given, words in (
        (chosen, "(fit and choice made now)"),
        (chosen, "(fit and choice from the cache)"),
        ({**chosen, "grid": "2x4"}, "(fit from the cache, choice made now)"),
        ({"top_k": 2, "delta": 4, "element": "neuron"}, "(fit from the cache)"),
    ):
        caplog.clear()
        evaluate("tiny_choice", **given)
        found = said(caplog, "tiny_choice")
        assert found.startswith("sadi-neuron: ")
        assert found.endswith(words), found


def test_a_warning_names_the_row_and_what_was_done(
    evaluate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a setting that changes nothing: one rule steers nothing, another one all the same."""
    for element, rule, words in (
        ("head", "sure", "rule sure steers nothing"),
        ("neuron", "best", "rule best steers"),
    ):
        caplog.clear()
        evaluate("tiny_choice", grid="1x0.000001", n_tune=20, element=element, rule=rule)
        told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        [line] = [line for line in told if line.startswith("Task tiny_choice: ")]
        assert f"no setting of sadi-{element} beats the unsteered model" in line
        assert words in line


def test_a_run_of_two_tasks_says_what_a_user_can_act_on_and_nothing_else(
    evaluate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What it costs, that nothing was found if so, and how each task was steered."""
    tasks = "tiny_choice", "tiny_word"
    given = {"grid": "1x0.000001", "n_tune": 20, "rule": "sure", "baseline": True}
    evaluate(*tasks, **given)
    costs = [f"top_k and delta of {task}: 1 settings are tried on 20 documents" for task in tasks]
    nulls = [f"Task {task}: no setting of sadi-head beats" for task in tasks]
    ends = [f"Task {task}: sadi-head: unsteered, as rule sure took no setting" for task in tasks]
    first = [costs[0], nulls[0], costs[1], nulls[1], *ends]
    for expected in (first, [*nulls, *ends]):  # then out of the cache
        mine = [record.getMessage() for record in caplog.records if record.name == "lm_eval.sadi"]
        assert len(mine) == len(expected), mine
        assert [m for m, begin in zip(mine, expected, strict=True) if not m.startswith(begin)] == []
        caplog.clear()
        evaluate(*tasks, **given)


def test_rows_that_steer_nothing_are_told_of_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Of a dozen methods, a line each would be a page for every task."""
    axes = Axes(Axis("layer", whole=True, counts="layer"), Axis("multiplier", strength=True))
    outcomes = [outcome(s, np.ones((4, 3)), np.ones((4, 3))) for s in (Setting(0, 0.0), SETTING)]

    def choice(taken: int, p_max: float | None) -> Choice:
        return Choice(outcomes, taken, 4, "metric", axes, "best", p_max)

    task = RunTask(SimpleNamespace(config=SimpleNamespace(task="asked")))
    choices = {
        "caa": choice(0, 0.4),
        "iti": choice(1, 0.3),
        "mera": choice(0, 0.9),
        "sure": choice(1, 0.01),
    }
    _warn_of_chance(task, choices)
    begin, middle = "Task asked: no setting of", "beats the unsteered model by more than chance may"
    assert [record.getMessage() for record in caplog.records] == [
        f"{begin} caa, mera {middle} on 4 held-out documents (p_max from 0.40); "
        "rule best steers nothing",
        f"{begin} iti {middle} on 4 held-out documents (p_max 0.30); "
        "rule best steers all the same: layer=2, multiplier=1.5, +0.0000 ± 0.0000 there",
    ]
