"""``hf-caa`` against CAA's equations written out: its vector, scores and texts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.loops import (
    activations_of_pairs,
    adding,
    assert_generated_as_the_loop_says,
    assert_scored_as_the_loop_says,
    plain_score,
    texts_of_pairs,
    tokens_of,
    tried,
)
from helpers.messages import one_line
from helpers.results import masks_of, numbers
from helpers.tasks import held_out_of, load, make_alike, make_task
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import digest
from sadi_lmeval.methods.caa import CAA
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.settings import Setting
from sadi_lmeval.steering.outcome import Outcome, best
from sadi_lmeval.storage.fit_file import load_fit

LAYERS, WIDTH = 3, 32
GIVEN = {"n_pairs": 12, "layer": 1, "multiplier": 1}

# ------------------------------------------------------------------ the equations

Vector = Callable[..., Tensor]


@pytest.fixture
def vector(
    tasks_folder: Path,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> Vector:
    """v of every layer by section 3, from plain passes over a task's pairs, ``[layers, width]``."""

    def find(
        name: str, mask: int = 0, max_length: int = 256, folder: Path = tasks_folder, **given: Any
    ) -> Tensor:
        texts = texts_of_pairs(folder, name, "caa", mask, **given)
        read = activations_of_pairs(harness_model, tokenizer, texts, "residual", max_length)
        total = torch.zeros(LAYERS, WIDTH).double()
        for positive, negative in zip(*read, strict=True):
            total += positive - negative
        return (total / len(texts)).float()

    return find


def shift_of(vector: Tensor, layer: int, multiplier: float) -> Tensor:
    """What is added to the residual stream, ``[layers, width]``."""
    shift = torch.zeros(LAYERS, WIDTH)
    shift[layer] = multiplier * vector[layer]
    return shift


def vector_of(mask: dict[str, Any]) -> Tensor:
    return load_fit(Path(mask["file"])).tensors["difference"].flatten(1)


# ------------------------------------------------------------------ what is measured


@pytest.mark.parametrize("task", ["tiny_choice", "tiny_folds", "tiny_empty", "tiny_word"])
def test_the_vector_is_that_of_plain_passes(evaluate: Any, vector: Vector, task: str) -> None:
    """At the last token of each answer, after each block."""
    masks = masks_of(evaluate(task, model="hf-caa", limit=4, **GIVEN), task)
    assert len(masks) == (2 if task == "tiny_folds" else 1)
    for index, mask in enumerate(masks):
        expected = vector(task, index)
        assert (expected.norm(dim=1) > 0.5).all()
        torch.testing.assert_close(vector_of(mask), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_edit_adds_the_vector_in_its_layer_alone(
    harness_model: LlamaForCausalLM,
    layer: int,
) -> None:
    generator = torch.Generator().manual_seed(0)
    difference = torch.randn(LAYERS, WIDTH, 1, generator=generator)
    before = difference.clone()
    site = find_site(harness_model, "hidden", "residual")
    settings = [Setting(layer, -1.5), Setting((layer + 1) % LAYERS, 2.0), Setting(layer, 0.0)]
    edits = CAA().edits(site, {"difference": difference}, settings, 0)
    assert edits.first_layers == [layer, (layer + 1) % LAYERS, LAYERS]
    rows = torch.randn(4, WIDTH, generator=generator)
    for other in range(LAYERS):
        found = edits.apply(other, rows, torch.tensor([0, 1, 2, 0]))
        v = difference[other].flatten()
        first = rows + -1.5 * v if other == layer else rows
        second = rows[1] + 2.0 * v if other == settings[1][0] else rows[1]
        assert torch.equal(found[[0, 3]], first[[0, 3]])
        assert torch.equal(found[1], second)
        assert torch.equal(found[2], rows[2])
    assert torch.equal(difference, before)


def test_a_grid_of_all_layers_keeps_each_vector_once(
    harness_model: LlamaForCausalLM,
) -> None:
    difference = torch.randn(LAYERS, WIDTH, 1)
    site = find_site(harness_model, "hidden", "residual")
    every = [Setting(n, m) for n in range(LAYERS) for m in (0.5, 1.0, 1.5, 2.0)]
    edits = CAA().edits(site, {"difference": difference}, every, 0)
    assert edits.count == len(every)
    kept = [t for tensors in edits._tensors.values() for t in tensors.values()]
    assert sum(t.numel() for t in kept) == LAYERS * WIDTH
    assert edits.numbers.numel() == len(every)


# ------------------------------------------------------------------ scores


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("task", ["tiny_choice", "tiny_folds", "tiny_empty", "tiny_input"])
def test_every_choice_scores_what_the_equation_says(
    evaluate: Any,
    vector: Vector,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: str,
    layer: int,
) -> None:
    limit = 50 if task == "tiny_folds" else 12
    given = {**GIVEN, "layer": layer, "multiplier": -1.5}
    results = evaluate(task, model="hf-caa", limit=limit, **given)
    masks = masks_of(results, task)
    shifts = [shift_of(vector(task, index), layer, -1.5) for index in range(len(masks))]

    def change_of(document: int) -> Any:
        return adding(shifts[document // 25 if task == "tiny_folds" else 0])

    found = tried(results, task)
    assert len(found) == 3 * limit
    assert_scored_as_the_loop_says(found, harness_model, tokenizer, "residual", change_of)
    plain = [
        plain_score(harness_model, *tokens_of(tokenizer, f.context, f.continuation), "head", None)
        for f in found
    ]
    assert np.median([abs(f.score[0] - p[0]) for f, p in zip(found, plain, strict=True)]) > 0.1


@pytest.mark.parametrize("plainly", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_prompts_that_begin_and_end_alike_score_what_the_equation_says(
    run_task: Any,
    vector: Vector,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: Any,
    plainly: bool,
) -> None:
    make_alike(tmp_path)
    if plainly:
        monkeypatch.setattr(Engine, "longest_branching_path", 0)
    results = run_task("alike", "hf-caa", batch_size, **GIVEN)
    change = adding(shift_of(vector("alike", folder=tmp_path), 1, 1))
    found = tried(results, "alike")
    assert_scored_as_the_loop_says(found, harness_model, tokenizer, "residual", lambda _: change)


def test_prompts_cut_from_the_left_score_what_the_equation_says(
    evaluate: Any,
    vector: Vector,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    results = evaluate("tiny_choice", model="hf-caa", max_length=9, **GIVEN)
    change = adding(shift_of(vector("tiny_choice", max_length=9), 1, 1))
    found = tried(results, "tiny_choice")
    assert_scored_as_the_loop_says(
        found, harness_model, tokenizer, "residual", lambda _: change, max_length=9
    )


@pytest.mark.parametrize("layer", [0, 2])
def test_texts_are_those_of_a_loop_that_edits_every_generated_token(
    evaluate: Any,
    vector: Vector,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    layer: int,
) -> None:
    change = adding(shift_of(vector("tiny_text"), layer, 1.5))
    given = {**GIVEN, "layer": layer, "multiplier": 1.5}
    results = evaluate("tiny_text", model="hf-caa", limit=20, settings={"batch_size": 5}, **given)
    assert_generated_as_the_loop_says(
        results, "tiny_text", harness_model, tokenizer, "residual", change
    )


# ------------------------------------------------------------------ no document meets itself


def test_a_planted_document_is_not_in_the_vector(
    run_task: Any,
    vector: Vector,
    tasks_folder: Path,
    tmp_path: Path,
) -> None:
    train, scored = (
        [json.loads(line) for line in (tasks_folder / f"{split}.jsonl").open(encoding="utf-8")]
        for split in ("train", "validation")
    )
    train, scored = train[:12], scored[:6]
    mixed = [*train[:5], scored[1], *train[5:9], scored[4], *train[9:]]
    task = make_task(tmp_path, "planted", {"train": mixed, "validation": scored})
    [mask] = masks_of(run_task("planted", "hf-caa", **GIVEN), "planted")
    card = load_fit(Path(mask["file"])).card
    assert len(set(card["documents"])) == 12
    assert not set(card["documents"]) & {digest(d) for d in task.evaluated()}
    expected = vector("planted", folder=tmp_path)
    torch.testing.assert_close(vector_of(mask), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match="makes 12 contrastive pairs"):
        run_task("planted", "hf-caa", **{**GIVEN, "n_pairs": 13})


# ------------------------------------------------------------------ saved vectors


def test_a_saved_vector_steers_another_run_in_any_layer(evaluate: Any, tmp_path: Path) -> None:
    own = evaluate("tiny_choice", model="hf-caa", **GIVEN)
    [mask] = masks_of(own, "tiny_choice")
    given = {"mask": mask["file"], "cache_dir": str(tmp_path / "none")}
    other = evaluate("tiny_choice", model="hf-caa", **given, layer=1, multiplier=1)
    assert numbers(other, "tiny_choice") == numbers(own, "tiny_choice")
    assert not (tmp_path / "none").exists()
    fresh = evaluate("tiny_choice", model="hf-caa", **{**GIVEN, "layer": 2, "multiplier": -2})
    again = evaluate("tiny_choice", model="hf-caa", **given, layer=2, multiplier=-2)
    assert numbers(again, "tiny_choice") == numbers(fresh, "tiny_choice")


def test_a_vector_of_a_document_that_is_scored_is_refused(evaluate: Any) -> None:
    masks = masks_of(evaluate("tiny_folds", model="hf-caa", **GIVEN), "tiny_folds")
    with pytest.raises(UserError, match="a document that task tiny_choice scores") as caught:
        evaluate("tiny_choice", model="hf-caa", limit=50, mask=masks[0]["file"], **GIVEN)
    assert masks[0]["file"] in one_line(caught)


def test_a_mask_of_another_element_or_site_is_refused(evaluate: Any) -> None:
    for arguments, words in (
        ({}, "for element head, but this run has hidden"),
        ({"element": "hidden"}, "for hidden_site=mlp, but this run has residual"),
    ):
        [mask] = masks_of(evaluate("tiny_choice", top_k=2, delta=3, **arguments), "tiny_choice")
        with pytest.raises(UserError, match=words) as caught:
            evaluate("tiny_choice", model="hf-caa", mask=mask["file"], **GIVEN)
        assert mask["file"] in one_line(caught)
    [mask] = masks_of(evaluate("tiny_choice", model="hf-caa", **GIVEN), "tiny_choice")
    with pytest.raises(UserError, match="kind mean_difference, but this run has probes") as caught:
        evaluate("tiny_choice", model="hf-iti", mask=mask["file"], top_k=2, alpha=3)
    one_line(caught)


@pytest.mark.parametrize("layer", [3, -1, 1.5])
def test_a_layer_that_the_model_does_not_have_is_refused(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch, layer: float
) -> None:
    monkeypatch.setattr("sadi_lmeval.model.SteeredModel._create_model", None)
    with pytest.raises(UserError, match=f"layer={layer}") as caught:
        evaluate("tiny_choice", model="hf-caa", **{**GIVEN, "layer": layer})
    one_line(caught)


# ------------------------------------------------------------------ what is chosen


def test_layer_and_multiplier_are_chosen_on_held_out_documents_by_what_they_score_there(
    evaluate: Any,
    vector: Vector,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks_folder: Path,
) -> None:
    """All layers with the method's own multipliers."""
    results = evaluate("tiny_choice", model="hf-caa", n_tune=8)
    [mask] = masks_of(results, "tiny_choice")
    of_pairs, documents = held_out_of(tasks_folder, "tiny_choice", n_tune=8, n_pairs=12)
    scored = {digest(d) for d in load(tasks_folder, "tiny_choice").evaluated()}
    assert of_pairs == set(load_fit(Path(mask["file"])).card["documents"])
    assert not {digest(d) for d in documents} & (of_pairs | scored)

    known, table = vector("tiny_choice"), []
    multipliers = (0.5, 1.0, 1.5, 2.0)
    for layer, multiplier in [(0, 0.0), *((n, m) for n in range(LAYERS) for m in multipliers)]:
        change, values, margins = adding(shift_of(known, layer, multiplier)), [], []
        for document in documents:
            context = tokenizer.encode(f"{document['question']} answer :")
            likely = [
                plain_score(harness_model, context, tokenizer.encode(choice), "residual", change)[0]
                for choice in document["choices"]
            ]
            values.append(float(np.argmax(likely) == document["label"]))
            right = likely.pop(document["label"])
            margins.append(right - max(likely))
        table.append((layer, multiplier, np.mean(values), np.mean(margins)))
    tuning = mask["tuning"]
    names = ("layer", "multiplier", "score", "margin")
    found = [tuple(row[name] for name in names) for row in tuning["table"]]
    assert found == [pytest.approx(row, abs=1e-4) for row in table]
    chosen = max(table, key=lambda row: (row[2], row[3]))
    assert tuning["chosen"] == {"layer": chosen[0], "multiplier": chosen[1]}
    record = results["config"]["sadi"]["tiny_choice"]
    assert (record["layer"], record["multiplier"]) == chosen[:2]
    assert not {"top_k", "delta", "alpha"} & {*record, *mask, *tuning["table"][0]}


def test_with_a_multiplier_alone_the_layer_is_chosen(evaluate: Any) -> None:
    for multiplier in (-1, 2.5):
        results = evaluate("tiny_choice", model="hf-caa", n_tune=8, multiplier=multiplier)
        [mask] = masks_of(results, "tiny_choice")
        table = [(row["layer"], row["multiplier"]) for row in mask["tuning"]["table"]]
        assert table == [(0, 0), (0, multiplier), (1, multiplier), (2, multiplier)]


def test_a_layer_that_is_given_is_not_tuned(evaluate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    results = evaluate("tiny_choice", model="hf-caa", n_tune=8, layer=2, multiplier="auto")
    [mask] = masks_of(results, "tiny_choice")
    table = [(row["layer"], row["multiplier"]) for row in mask["tuning"]["table"][1:]]
    assert table == [(2, 0.5), (2, 1), (2, 1.5), (2, 2)]
    monkeypatch.setattr(Engine, "score_grid", None)
    for arguments, multiplier in (({"multiplier": 2}, 2), ({}, 1)):
        results = evaluate("tiny_choice", model="hf-caa", layer=2, **arguments)
        [mask] = masks_of(results, "tiny_choice")
        assert (mask["layer"], mask["multiplier"]) == (2, multiplier)
        assert "tuning" not in mask


def test_the_forced_target_of_a_generation_task_is_edited_while_tuning(
    evaluate: Any,
    vector: Vector,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks_folder: Path,
) -> None:
    results = evaluate("tiny_text", model="hf-caa", grid="0/2x1", n_tune=8)
    [mask] = masks_of(results, "tiny_text")
    _, documents = held_out_of(tasks_folder, "tiny_text", n_tune=8, n_pairs=12)
    known = vector("tiny_text")
    for row in mask["tuning"]["table"]:
        change = adding(shift_of(known, row["layer"], row["multiplier"]))
        scores = []
        for document in documents:
            context = tokenizer.encode(f"{document['question']} answer :")
            target = tokenizer.encode(document["answer"])
            value, _ = plain_score(harness_model, context, target, "residual", change)
            scores.append(value / len(target))
        assert row["score"] == pytest.approx(np.mean(scores), abs=1e-4)


def test_of_equal_settings_the_smaller_edit_is_taken_wherever_it_is() -> None:
    edit_size = CAA().edit_size

    def chosen(*settings: tuple[int, float]) -> Setting:
        """Of equally good ones."""
        outcomes = [Outcome(Setting(*s), 0.5, 0.1, 0.4, 0.1, 2.0) for s in settings]
        return outcomes[best(outcomes, edit_size)].setting

    assert chosen((0, 2.0), (2, 1.0), (1, -1.5)) == (2, 1.0)
    assert chosen((1, -0.5), (2, 1.0)) == (1, -0.5)
    assert chosen((1, 1.0), (2, 1.0), (0, 1.0)) == (1, 1.0)
    assert chosen((2, 0.5), (0, 0.0)) == (0, 0.0)


# ------------------------------------------------------------------ the plain command

_RUN = """
import json, sys
from helpers import quick_host
from lm_eval.__main__ import cli_evaluate
quick_host.hurry()
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()
"""


@pytest.mark.slow
def test_the_harness_s_own_command_knows_both_models_and_writes_what_they_chose(
    tmp_path: Path, model_folder: Path, tasks_folder: Path
) -> None:
    """Both in one interpreter, which takes as long to start as all other tests here."""
    runs = []
    for model, arguments in (
        ("hf-iti", "grid=1/5x-2/3,n_tune=8"),
        ("hf-caa", "multiplier=1,n_tune=8"),
    ):
        given = f"pretrained={model_folder},cache_dir={tmp_path / 'cache'},n_pairs=12,{arguments}"
        command = ["--model", model, "--model_args", given, "--tasks", "tiny_choice,tiny_text"]
        command += ["--device", "cpu", "--limit", "4", "--include_path", str(tasks_folder)]
        runs.append([*command, "--output_path", str(tmp_path / model)])
    done = subprocess.run(
        [sys.executable, "-c", _RUN, json.dumps(runs)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(tmp_path / "datasets"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parent),
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace(" ", "").count("|tiny_choice|") == 2
    for model, names, settings in (
        ("hf-iti", ("top_k", "alpha"), [(0, 0), (1, -2), (1, 3), (5, -2), (5, 3)]),
        ("hf-caa", ("layer", "multiplier"), [(0, 0), (0, 1), (1, 1), (2, 1)]),
    ):
        [file] = (tmp_path / model).rglob("results_*.json")
        said = json.loads(file.read_text(encoding="utf-8"))["config"]["sadi"]
        assert set(said) == {"tiny_choice", "tiny_text"}
        for record in said.values():
            assert record["method"] == model.removeprefix("hf-")
            assert record["parameters"] == list(names)
            [mask] = record["fits"]
            rows = [tuple(row[name] for name in names) for row in mask["tuning"]["table"]]
            assert rows == settings
            assert set(mask["tuning"]["chosen"]) == set(names)
