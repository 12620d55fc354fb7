"""``hf-sadi`` through the harness: its tasks, its options, its results file."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
import yaml
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerFast

from helpers.models import tiny_llama
from helpers.results import numbers, scores
from sadi_lmeval.model import model_class
from sadi_lmeval.storage.fit_file import load_fit

STEER = {"top_k": 3, "delta": 4}
MULTIPLE_CHOICE = ("tiny_choice", "tiny_folds", "tiny_input", "tiny_empty")


@pytest.mark.parametrize("task", [*MULTIPLE_CHOICE, "tiny_word"])
def test_a_delta_of_zero_gives_the_scores_of_hf(evaluate: Any, task: str) -> None:
    plain, zero = evaluate(task, model="hf"), evaluate(task, delta=0)
    assert numbers(zero, task) == pytest.approx(numbers(plain, task), abs=1e-4)
    assert [s[1] for s in scores(zero, task)] == [s[1] for s in scores(plain, task)]


@pytest.mark.parametrize("task", ["tiny_text", "tiny_sum"])
def test_a_delta_of_zero_generates_the_strings_of_hf(evaluate: Any, task: str) -> None:
    assert scores(evaluate(task, delta=0), task) == scores(evaluate(task, model="hf"), task)


@pytest.mark.parametrize("element", ["head", "neuron", "hidden"])
@pytest.mark.parametrize("activations", ["live", "clean"])
def test_steering_changes_scores_and_every_batch_size_agrees(
    evaluate: Any, element: str, activations: str
) -> None:
    tasks = ("tiny_choice", "tiny_folds")
    settings = {**STEER, "element": element, "activations": activations}
    runs = [evaluate(*tasks, settings={"batch_size": size}, **settings) for size in (1, 8, "auto")]
    for task in tasks:
        assert numbers(runs[1], task) == pytest.approx(numbers(runs[0], task), abs=1e-4)
        assert numbers(runs[2], task) == pytest.approx(numbers(runs[0], task), abs=1e-4)
        plain = numbers(evaluate(task, model="hf"), task)
        assert max(abs(a - b) for a, b in zip(plain, numbers(runs[0], task), strict=True)) > 0.01


def test_steering_changes_generated_text(evaluate: Any) -> None:
    plain = scores(evaluate("tiny_text", model="hf", limit=20), "tiny_text")
    steered = scores(evaluate("tiny_text", limit=20, top_k=4, delta=30), "tiny_text")
    assert plain != steered


def test_two_tasks_use_two_masks_and_cross_fitted_tasks_one_a_fold(evaluate: Any) -> None:
    found = evaluate("tiny_choice", "tiny_folds", limit=30, **STEER)["config"]["sadi"]
    keys = [mask["cache_key"] for task in found.values() for mask in task["fits"]]
    assert [len(found[task]["fits"]) for task in ("tiny_choice", "tiny_folds")] == [1, 2]
    assert len(set(keys)) == 3
    assert found["tiny_choice"]["folds"] is None
    assert found["tiny_folds"]["folds"] == 2


def test_a_task_scores_the_same_alone_and_among_others(evaluate: Any) -> None:
    together = evaluate(*MULTIPLE_CHOICE, **STEER)
    for task in MULTIPLE_CHOICE:
        alone = numbers(evaluate(task, **STEER), task)
        assert numbers(together, task) == pytest.approx(alone, abs=1e-4)


def test_a_document_is_scored_with_the_same_mask_whatever_the_limit(evaluate: Any) -> None:
    few, many = (evaluate("tiny_folds", limit=n, **STEER) for n in (4, 40))
    assert numbers(many, "tiny_folds")[:12] == pytest.approx(numbers(few, "tiny_folds"), abs=1e-4)
    wanted = {"samples": {"tiny_folds": [0, 30, 40]}}
    chosen = numbers(evaluate("tiny_folds", limit=None, settings=wanted, **STEER), "tiny_folds")
    everything = numbers(evaluate("tiny_folds", limit=50, **STEER), "tiny_folds")
    expected = [everything[3 * d + c] for d in (0, 30, 40) for c in range(3)]
    assert chosen == pytest.approx(expected, abs=1e-4)


def test_the_results_say_how_a_task_was_steered(evaluate: Any) -> None:
    found = evaluate("tiny_choice", element="neuron", **STEER)["config"]["sadi"]["tiny_choice"]
    assert (found["element"], found["top_k"], found["delta"]) == ("neuron", 3, 4.0)
    assert (found["recipe"], found["pairs_from"]) == ("right_wrong", "train")
    [mask] = found["fits"]
    assert mask["n_pairs"] == 12
    assert len(mask["selected"]) == 3
    assert all(layer < 3 and entry < 48 for layer, entry in mask["selected"])
    assert Path(mask["file"]).is_file()
    json.dumps(found)


def test_a_second_run_builds_nothing_and_says_so(
    evaluate: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = numbers(evaluate("tiny_choice", **STEER), "tiny_choice")
    monkeypatch.setattr("sadi_lmeval.passes.engine.read_pairs", None)
    with caplog.at_level(logging.INFO, logger="lm_eval.sadi"):
        assert numbers(evaluate("tiny_choice", **STEER), "tiny_choice") == first
    assert "(fit from the cache)" in caplog.text
    evaluate("tiny_choice", top_k=5, delta=1, selection="bottom")  # K and delta need no new pass
    with pytest.raises(TypeError):
        evaluate("tiny_choice", seed=1, **STEER)


def test_a_saved_mask_steers_another_run(evaluate: Any, tmp_path: Path) -> None:
    own = evaluate("tiny_choice", **STEER)
    file = own["config"]["sadi"]["tiny_choice"]["fits"][0]["file"]
    other = evaluate("tiny_choice", cache_dir=str(tmp_path / "none"), mask=file, **STEER)
    assert numbers(other, "tiny_choice") == numbers(own, "tiny_choice")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("shots", [0, 2])
def test_a_fit_s_card_names_the_examples_that_its_pairs_show(evaluate: Any, shots: int) -> None:
    results = evaluate("tiny_choice", pairs_num_fewshot=shots, **STEER)
    [fit] = results["config"]["sadi"]["tiny_choice"]["fits"]
    card = load_fit(Path(fit["file"])).card
    spare = shots + 1 if shots else 0
    assert len(card["documents"]) == len(card["questions"]) == card["n_pairs"] + spare


def test_a_saved_mask_of_another_model_is_told_and_named(
    evaluate: Any,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = evaluate("tiny_choice", **STEER)
    [fit] = own["config"]["sadi"]["tiny_choice"]["fits"]
    evaluate("tiny_choice", mask=fit["file"], **STEER)
    assert "another model" not in caplog.text
    retrained = tiny_llama(len(tokenizer))
    with torch.no_grad():
        retrained.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    retrained.save_pretrained(tmp_path / "retrained")
    tokenizer.save_pretrained(tmp_path / "retrained")
    arguments = {"pretrained": str(tmp_path / "retrained"), "mask": fit["file"], **STEER}
    [its] = evaluate("tiny_choice", **arguments)["config"]["sadi"]["tiny_choice"]["fits"]
    assert "was made for another model of the same shape" in caplog.text
    assert its["of_model"]
    assert "of_model" not in fit


def test_the_model_says_that_by_itself_it_is_not_steered(
    evaluate: Any, model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluate("tiny_text", limit=2, **STEER)
    assert "is not steered" not in caplog.text
    tokens = torch.tensor([[5, 9, 7]])
    for method, count in (("none", 0), (None, 1)):
        given = {"pretrained": str(model_folder), "device": "cpu", **STEER}
        lm = model_class("sadi")(**given, **({"method": method} if method else {}))
        for _ in range(2):
            lm.model.generate(tokens, max_new_tokens=2)
        assert caplog.text.count("model.generate of an hf-sadi is not steered") == count


def test_a_mask_from_another_task_is_that_tasks_mask(evaluate: Any) -> None:
    found = evaluate("tiny_text", mask_from="tiny_choice", **STEER)["config"]["sadi"]["tiny_text"]
    own = evaluate("tiny_choice", **STEER)["config"]["sadi"]["tiny_choice"]
    assert found["fits"][0]["selected"] == own["fits"][0]["selected"]
    assert found["mask_from"] == "tiny_choice"


@pytest.mark.parametrize("shots", [None, 2])
def test_pairs_of_a_task_outside_the_run_have_its_few_shot_examples(
    evaluate: Any, shots: int | None
) -> None:
    settings = {"num_fewshot": shots}
    found = evaluate("tiny_text", mask_from="tiny_choice", settings=settings, **STEER)
    [fit] = found["config"]["sadi"]["tiny_text"]["fits"]
    card = load_fit(Path(fit["file"])).card
    examples = 0 if shots is None else shots + 1  # and one to spare
    assert len(card["documents"]) == card["n_pairs"] + examples


@pytest.mark.parametrize("own", [None, 0, 2, 3])
def test_few_shot_examples_of_the_run_reach_a_task_outside_it_whatever_the_scored_one_says(
    tasks_folder: Path, model_folder: Path, tmp_path: Path, own: int | None
) -> None:
    config = yaml.safe_load((tasks_folder / "tiny_choice.yaml").read_text(encoding="utf-8"))
    for name, shots in (("scored", own), ("outside", 5)):
        text = yaml.safe_dump({**config, "task": name, "num_fewshot": shots})
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    found = lm_eval.simple_evaluate(
        model="hf-sadi",
        model_args={
            "pretrained": str(model_folder),
            "cache_dir": str(tmp_path / "cache"),
            "n_pairs": 12,
            "mask_from": "outside",
            **STEER,
        },
        tasks=["scored"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        num_fewshot=2,
        limit=2,
        device="cpu",
        bootstrap_iters=0,
    )
    [fit] = found["config"]["sadi"]["scored"]["fits"]
    card = load_fit(tmp_path / "cache" / fit["file"]).card
    assert len(card["documents"]) == card["n_pairs"] + 2 + 1  # and one to spare


def test_use_cache_never_returns_another_settings_scores(evaluate: Any, tmp_path: Path) -> None:
    cached = {"use_cache": str(tmp_path / "responses")}
    evaluate("tiny_choice", "tiny_text", model="hf", settings=cached)
    for arguments in (STEER, {"top_k": 3, "delta": 9}, {"top_k": 5, "delta": 4}, {"delta": 0}):
        fresh = evaluate("tiny_choice", "tiny_text", **arguments)
        for _ in range(2):  # the second time out of the cache
            again = evaluate("tiny_choice", "tiny_text", settings=cached, **arguments)
            assert numbers(again, "tiny_choice") == numbers(fresh, "tiny_choice")
            assert scores(again, "tiny_text") == scores(fresh, "tiny_text")


def test_use_cache_spares_the_model(
    evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = {"use_cache": str(tmp_path / "responses")}
    first = evaluate("tiny_choice", settings=cached, **STEER)
    monkeypatch.setattr("sadi_lmeval.passes.scoring._score", None)
    second = evaluate("tiny_choice", settings=cached, **STEER)
    assert numbers(second, "tiny_choice") == numbers(first, "tiny_choice")


def test_the_harness_options_work(evaluate: Any, tmp_path: Path) -> None:
    settings = {
        "num_fewshot": 2,
        "apply_chat_template": True,
        "system_instruction": "the cat",
        "fewshot_as_multiturn": True,
        "gen_kwargs": "max_gen_toks=3",
        "log_samples": True,
        "batch_size": "auto",
    }
    results = evaluate("tiny_choice", "tiny_text", settings=settings, **STEER)
    sample = results["samples"]["tiny_choice"][0]
    assert sample["arguments"][0][0].startswith("<s> system : the cat </s>")
    assert results["results"]["tiny_text"]["exact_match,none"] >= 0


def test_left_truncation_keeps_the_last_prompt_token(evaluate: Any) -> None:
    short, tall = (evaluate("tiny_choice", max_length=n, **STEER) for n in (12, 200))
    plain = evaluate("tiny_choice", model="hf", max_length=12)
    zero = evaluate("tiny_choice", delta=0, max_length=12)
    assert numbers(zero, "tiny_choice") == pytest.approx(numbers(plain, "tiny_choice"), abs=1e-4)
    assert numbers(short, "tiny_choice") != numbers(tall, "tiny_choice")
    one_by_one = evaluate("tiny_choice", max_length=12, settings={"batch_size": 1}, **STEER)
    expected = numbers(short, "tiny_choice")
    assert numbers(one_by_one, "tiny_choice") == pytest.approx(expected, abs=1e-4)


def test_a_benchmark_is_added_with_one_small_file(evaluate: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "benchmark: mine\ntasks: [tiny_*]\nrecipe: other_target\nfolds: 3\n"
        "settings: {sadi-head: {top_k: 5}}\n"
    )
    found = evaluate("tiny_folds", include_path=str(folder), recipe="right_wrong", delta=3)
    said = found["config"]["sadi"]["tiny_folds"]
    assert (said["folds"], said["top_k"], said["recipe"]) == (3, 5, "right_wrong")
    text = evaluate("tiny_text", include_path=str(folder), n_pairs=8)["config"]["sadi"]["tiny_text"]
    assert text["recipe"] == "other_target"


def test_the_plain_command_steers_and_writes_its_results(lm_eval: Any, tmp_path: Path) -> None:
    output = tmp_path / "results"
    done = lm_eval(
        *("--tasks", "tiny_choice,tiny_folds", "--limit", "6", "--batch_size", "auto"),
        *("--output_path", str(output), "--log_samples", "--seed", "7", "--cache_requests", "true"),
        **STEER,
    )
    assert done.returncode == 0, done.stderr
    assert "|tiny_choice|" in done.stdout.replace(" ", "")
    [file] = output.rglob("results_*.json")
    said = json.loads(file.read_text())["config"]["sadi"]
    assert set(said) == {"tiny_choice", "tiny_folds"}
