"""Results are written under the model's name, as those of ``hf`` are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker

from sadi_lmeval.harness.results_name import name_results_by_the_model


def named(source: str, arguments: Any) -> str | None:
    name_results_by_the_model()
    tracker = GeneralConfigTracker()
    tracker.log_experiment_args(source, arguments, None, None, False)
    name: str | None = tracker.model_name
    return name


@pytest.mark.parametrize("source", ["hf-sadi", "hf-iti"])
@pytest.mark.parametrize(
    ("ours", "its"),
    [
        ("pretrained=a/b,delta=9", "pretrained=a/b"),
        ("delta=3/9,pretrained=a/b,top_k=4", "pretrained=a/b"),
        ("pretrained=a/b,peft=c/d,delta=9", "pretrained=a/b,peft=c/d"),
        ("pretrained=a/b,delta_weights=c/d,delta=9", "pretrained=a/b,delta=c/d"),
    ],
)
def test_the_name_is_that_of_hf(source: str, ours: str, its: str) -> None:
    assert named(source, ours) == named("hf", its)
    as_mappings = [dict(part.split("=") for part in text.split(",")) for text in (ours, its)]
    assert named(source, as_mappings[0]) == named("hf", as_mappings[1])


def test_other_models_are_named_as_ever() -> None:
    assert named("hf", "pretrained=a/b,delta=c/d") == "c/d"


@pytest.mark.slow
def test_the_command_writes_to_the_model_s_folder(
    lm_eval: Any, tmp_path: Path, model_folder: Path
) -> None:
    options = ("--tasks", "tiny_choice", "--limit", "2", "--output_path", str(tmp_path / "out"))
    assert lm_eval(*options, top_k=2, delta=9).returncode == 0
    assert lm_eval(*options, model="hf").returncode == 0
    [folder] = (tmp_path / "out").iterdir()
    for file in folder.glob("results_*.json"):
        assert json.loads(file.read_text())["model_name"] == str(model_folder)
    assert len(list(folder.glob("results_*.json"))) == 2
