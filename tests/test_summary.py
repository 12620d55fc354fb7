"""How a task was steered, in the line that ends a run."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest

from helpers.results import masks_of


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
    assert said(caplog, "tiny_choice") == "sadi (head): top_k=2, delta=3"


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
        assert found == "sadi (head): unsteered, as no setting was taken (rule best)"
        return
    [row] = [r for r in mask["tuning"]["table"] if all(r[n] == v for n, v in chosen.items())]
    assert found == (
        f"sadi (head): top_k={chosen['top_k']}, delta={chosen['delta']:g}; held out "
        f"{row['difference']:+.4f} ± {row['difference_stderr']:.4f} over unsteered on 10 documents"
    )


def test_nothing_taken_is_said(evaluate: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A setting that changes nothing worth it."""
    evaluate("tiny_choice", grid="1x0.000001", n_tune=10)
    assert said(caplog, "tiny_choice").startswith("sadi (head): unsteered, as no setting was taken")


def test_each_fold_has_its_own(evaluate: Any, caplog: pytest.LogCaptureFixture) -> None:
    evaluate("tiny_folds", limit=50, top_k=2, delta=3)
    assert said(caplog, "tiny_folds") == (
        "sadi (head): fold 1: top_k=2, delta=3; fold 2: top_k=2, delta=3"
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
