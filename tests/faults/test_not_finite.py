"""Activations that overflow: the setting is marked, never silently scored as an answer."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from conftest import Evaluate
from faults.commands import Commands
from faults.counts import Count
from sadi_lmeval.errors import UserError

TOO_MUCH = 6e4
"""A strength that takes float16 beyond its largest number, 65504."""


def warned(caplog: pytest.LogCaptureFixture, task: str) -> bool:
    lines = [record.getMessage() for record in caplog.records]
    return any(task in line and "not finite" in line for line in lines)


@pytest.mark.parametrize("element", ["head", "neuron", "hidden"])
@pytest.mark.parametrize("task", ["tiny_choice", "tiny_text", "tiny_word"])
def test_a_given_setting_that_overflows_is_marked_in_the_results(
    evaluate: Evaluate,
    caplog: pytest.LogCaptureFixture,
    count: Count,
    task: str,
    element: str,
) -> None:
    steered: dict[str, Any] = {"element": element, "top_k": 20 if element != "head" else 4}
    for delta, bad in ((TOO_MUCH, True), (3, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "lm_eval.sadi"):
            found = evaluate(task, limit=6, dtype="float16", delta=delta, **steered)
        told = found["config"]["sadi"][task]
        assert told["delta"] == delta
        assert (told["not_finite"] > 0) == warned(caplog, task) == bad
        assert told["not_finite"] <= 6
        if task != "tiny_text":
            scores = [[float(r[0][0]) for r in s["resps"]] for s in found["samples"][task]]
            odd = [any(abs(score) == float("inf") or score != score for score in each)
                   for each in scores]  # fmt: skip
            assert sum(odd) == told["not_finite"]
    count(f"overflow on {task} at {element}", marked=1)


def test_texts_that_mean_nothing_are_not_kept_as_responses(
    evaluate: Evaluate, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"dtype": "float16", "top_k": 4, "delta": TOO_MUCH}
    kept = {"use_cache": str(tmp_path / "responses")}
    first, second = (
        evaluate("tiny_text", limit=6, settings=kept, **given)["config"]["sadi"]["tiny_text"]
        for _ in range(2)
    )
    assert first["not_finite"] == second["not_finite"] > 0


def test_a_setting_that_overflows_is_marked_while_tuning_and_not_chosen(
    evaluate: Evaluate, count: Count
) -> None:
    grid = {"grid": f"4x3/{TOO_MUCH:g}", "n_tune": 12, "dtype": "float16"}
    for task in ("tiny_choice", "tiny_folds", "tiny_text"):
        found = evaluate(task, limit=6, **grid)["config"]["sadi"][task]
        for fit in found["fits"]:
            rows = {row["delta"]: row for row in fit["tuning"]["table"]}
            assert rows[TOO_MUCH]["not_finite"] > 0
            assert rows[TOO_MUCH]["score"] is None
            assert rows[3.0]["not_finite"] == 0
            assert fit["delta"] != TOO_MUCH
        assert found["not_finite"] == 0
    count("overflow while tuning", marked=3)


def test_a_sweep_marks_what_overflows(commands: Commands, tmp_path: Path, count: Count) -> None:
    output = tmp_path / "out.jsonl"
    given: dict[str, Any] = {"n_pairs": 12, "dtype": "float16", "cache_dir": tmp_path / "cache"}
    options = ["--limit", "6", "--grid", f"4x3/{TOO_MUCH:g}", "--output", str(output)]
    options += ("--methods", "sadi-head,sadi-neuron,sadi-hidden")
    program = "sadi-lmeval sweep"
    done = commands.run(program, commands.arguments(program, "tiny_choice", *options, **given))
    assert done.code == 0, done.output[-3000:]
    found = list(map(json.loads, output.read_text().splitlines()))
    lines = {line.get("delta"): line for line in found}
    assert [line["method"] for line in found if "delta" not in line] == ["none"]
    assert lines[TOO_MUCH]["score"] is None
    assert lines[TOO_MUCH]["not_finite"] > 0
    assert lines[3.0]["not_finite"] == lines[None]["not_finite"] == 0
    count("overflow in a sweep", marked=1)


@pytest.mark.parametrize("model", ["hf-sadi", "hf-iti", "hf-caa", "hf-austeer", "hf-linear-act"])
def test_pairs_whose_activations_are_not_finite_make_no_fit(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str
) -> None:
    from sadi_lmeval.passes.forward import Forward

    inner = Forward.activations

    def overflowing(*arguments: Any) -> Any:
        found = inner(*arguments)
        found[0][0, 0, 0] = float("inf")
        return found

    monkeypatch.setattr(Forward, "activations", overflowing)
    given = {"hf-sadi": {"top_k": 2, "delta": 3}, "hf-iti": {"top_k": 2, "alpha": 3},
             "hf-caa": {"layer": 1, "multiplier": 1}, "hf-austeer": {"top_k": 2, "alpha": 3},
             "hf-linear-act": {"layer": 1, "strength": 1}}[model]  # fmt: skip
    with pytest.raises(UserError, match="dtype=bfloat16 or float32"):
        evaluate("tiny_choice", model=model, **given)
    assert not list((tmp_path / "cache").glob("*.safetensors"))
