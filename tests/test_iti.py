"""``hf-iti`` against ITI's equations written out: probes, directions, scores and texts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from test_model import numbers
from test_onwards import (  # noqa: F401
    activations_of_pairs,
    adding,
    assert_generated_as_the_loop_says,
    assert_scored_as_the_loop_says,
    harness_model,
    plain_score,
    run_task,
    task_manager,
    texts_of_pairs,
    tokens_of,
    tried,
)
from test_pairs import load, make_task
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.errors import UserError
from sadi_lmeval.harness.run_task import Document, digest
from sadi_lmeval.methods.arm import read_arm
from sadi_lmeval.methods.iti import ITI, Probes, best_heads, fit_probes, iti_edit
from sadi_lmeval.model import SteeredModel
from sadi_lmeval.pairs.plan import draw, find_plan
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.settings import Setting
from sadi_lmeval.steering.outcome import Outcome, ranked
from sadi_lmeval.storage.fit_file import load_fit

HEADS, HEAD_DIM, LAYERS = 4, 8, 3
GIVEN = {"n_pairs": 12, "top_k": 5, "alpha": 3}

# ------------------------------------------------------------------ the equations


class Head(NamedTuple):
    """What ITI knows of one head: its probe's accuracy; of each direction θ, and σ along it."""

    accuracy: float
    directions: dict[str, tuple[np.ndarray[Any, Any], float]]


def heads_of(true: Tensor, false: Tensor, seed: int = 0) -> dict[tuple[int, int], Head]:
    """Sections 3.1 and 3.2 of the paper, one head after another.

    Args:
        true, false: ``[pairs, layers, width]``.
    """
    count = len(true)
    questions = np.random.RandomState(seed).permutation(count).tolist()
    training = questions[: round(0.8 * count)]
    found = {}
    for layer in range(LAYERS):
        for head in range(HEADS):
            part = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
            rows: dict[bool, list[Any]] = {True: [], False: []}
            labels: dict[bool, list[int]] = {True: [], False: []}
            for question in range(count):
                for label, side in ((1, true), (0, false)):
                    rows[question in training].append(side[question, layer, part].numpy())
                    labels[question in training].append(label)
            probe = LogisticRegression(max_iter=1000).fit(rows[True], labels[True])
            right = probe.predict(rows[False]) == labels[False]
            truths = [side[layer, part].numpy() for side in true]
            lies = [side[layer, part].numpy() for side in false]
            difference = sum(truths) / count - sum(lies) / count
            directions = {}
            for name, raw in (("mass_mean", difference), ("probe", probe.coef_[0])):
                theta = raw / math.sqrt(sum(raw * raw))
                projections = [float(sum(theta * x)) for x in [*truths, *lies]]
                mean = sum(projections) / len(projections)
                variance = sum((p - mean) ** 2 for p in projections) / len(projections)
                directions[name] = theta, math.sqrt(variance)
            found[layer, head] = Head(float(right.mean()), directions)
    return found


def shift_of(
    heads: dict[tuple[int, int], Head], top_k: int, alpha: float, direction: str = "mass_mean"
) -> Tensor:
    """α σ θ in the K heads with the best probes (equation 2), ``[layers, width]``."""
    shift = torch.zeros(LAYERS, HEADS * HEAD_DIM)
    order = sorted(heads, key=lambda where: (-heads[where].accuracy, where))
    for layer, head in order[:top_k]:
        theta, sigma = heads[layer, head].directions[direction]
        part = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        shift[layer, part] = torch.from_numpy(alpha * sigma * theta)
    return shift


Heads = Callable[..., dict[tuple[int, int], Head]]


@pytest.fixture
def heads(
    tasks_folder: Path,
    harness_model: LlamaForCausalLM,  # noqa: F811
    tokenizer: PreTrainedTokenizerFast,
) -> Heads:
    """The heads by the equations, from plain passes over a task's pairs."""

    def find(
        name: str, mask: int = 0, max_length: int = 256, folder: Path = tasks_folder, **given: Any
    ) -> dict[tuple[int, int], Head]:
        texts = texts_of_pairs(folder, name, "iti", mask, **given)
        read = activations_of_pairs(harness_model, tokenizer, texts, "head", max_length)
        return heads_of(*read)

    return find


def probes_of(mask: dict[str, Any]) -> Probes:
    return Probes(**load_fit(Path(mask["file"])).tensors)


def masks_of(results: dict[str, Any], task: str) -> list[dict[str, Any]]:
    masks: list[dict[str, Any]] = results["config"]["sadi"][task]["fits"]
    return masks


def assert_measured(found: Probes, expected: dict[tuple[int, int], Head]) -> None:
    for (layer, head), one in expected.items():
        assert float(found.accuracy[layer, head]) == pytest.approx(one.accuracy)
        for name, std in (("mass_mean", found.mass_mean_std), ("probe", found.probe_std)):
            theta, sigma = one.directions[name]
            tolerance = 1e-4 if name == "mass_mean" else 2e-3  # how far the fit stops from its end
            assert getattr(found, name)[layer, head].numpy() == pytest.approx(theta, abs=tolerance)
            assert float(std[layer, head]) == pytest.approx(sigma, rel=tolerance * 10)


# ------------------------------------------------------------------ what is measured


@pytest.mark.parametrize("task", ["tiny_choice", "tiny_folds", "tiny_empty", "tiny_word"])
def test_probes_directions_and_sigmas_are_those_of_plain_passes_and_scikit_learn(
    evaluate: Any, heads: Heads, task: str
) -> None:
    given = {**GIVEN, "n_pairs": 20}
    masks = masks_of(evaluate(task, model="hf-iti", limit=4, **given), task)
    assert len(masks) == (2 if task == "tiny_folds" else 1)
    for index, mask in enumerate(masks):
        expected = heads(task, index, n_pairs=20)
        assert len({one.accuracy for one in expected.values()}) > 2
        assert_measured(probes_of(mask), expected)


def test_directions_have_length_one_and_a_head_that_says_nothing_has_none() -> None:
    generator = torch.Generator().manual_seed(0)
    true, false = torch.randn(2, 10, LAYERS, HEADS, HEAD_DIM, generator=generator)
    true[:, 1, 2] = false[:, 1, 2] = 0.5
    found = fit_probes(true, false, 0, "test")
    for direction in (found.mass_mean, found.probe):
        lengths = direction.norm(dim=-1)
        assert lengths[1, 2] == 0
        lengths[1, 2] = 1
        torch.testing.assert_close(lengths, torch.ones(LAYERS, HEADS))
    assert float(found.accuracy[1, 2]) == 0.5


def test_a_question_is_in_one_part_with_both_its_texts() -> None:
    """Its texts differ from all others' and by nothing that others have: ranking is by chance."""
    pairs = 10
    true = torch.zeros(pairs, 1, 1, pairs)
    for pair in range(pairs):
        true[pair, 0, 0, pair] = 1 if pair % 2 else -1
    found = fit_probes(true, -true, 0, "test")
    assert float(found.accuracy) in (0.0, 0.5, 1.0)  # of two questions that no probe has seen
    ranked = np.random.RandomState(0).permutation(pairs)[8:].tolist()
    fitted = LogisticRegression(max_iter=1000)
    rest = [i for i in range(pairs) if i not in ranked]
    fitted.fit(torch.cat([true[rest], -true[rest]]).flatten(1).numpy(), [1] * 8 + [0] * 8)
    assert abs(fitted.coef_[0][ranked]).max() == 0
    probe = found.probe[0, 0]
    assert [float(probe[i]) for i in ranked] == [0, 0]
    assert all(abs(float(probe[i])) > 0.1 for i in rest)


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 5])
def test_the_seed_decides_which_questions_rank_the_probes(seed: int) -> None:
    generator = torch.Generator().manual_seed(0)
    true, false = torch.randn(2, 15, LAYERS, HEADS, HEAD_DIM, generator=generator)
    one, again, other = (fit_probes(true, false, s, "test") for s in (seed, seed, seed + 1))
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one.accuracy, other.accuracy)
    assert torch.equal(one.mass_mean, other.mass_mean)
    assert torch.equal(one.mass_mean_std, other.mass_mean_std)


def test_the_most_accurate_heads_are_chosen_and_of_equal_ones_the_earlier() -> None:
    accuracy = torch.tensor([[0.5, 0.9, 0.7], [0.9, 0.7, 1.0]])
    wanted = [(1, 2), (0, 1), (1, 0), (0, 2), (1, 1), (0, 0)]
    for top_k in range(1, 7):
        chosen = {tuple(place) for place in best_heads(accuracy, top_k).nonzero().tolist()}
        assert chosen == set(wanted[:top_k])


@pytest.mark.parametrize("direction", ["mass_mean", "probe"])
def test_the_edit_adds_alpha_sigma_theta_to_the_chosen_heads(direction: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    true, false = torch.randn(2, 10, LAYERS, HEADS, HEAD_DIM, generator=generator)
    found = fit_probes(true, false, 0, "test")
    expected = shift_of(heads_of(true.flatten(2).double(), false.flatten(2).double()), 5, -2.5,
                        direction)  # fmt: skip
    edit = iti_edit(found, 5, -2.5, direction)
    assert edit.shift is not None
    assert not edit.gain.any()
    torch.testing.assert_close(edit.shift, expected, atol=2e-2, rtol=2e-3)
    assert torch.equal(edit.shift != 0, expected != 0)


# ------------------------------------------------------------------ scores


@pytest.mark.parametrize("direction", ["mass_mean", "probe"])
@pytest.mark.parametrize("task", ["tiny_choice", "tiny_folds", "tiny_empty", "tiny_input"])
def test_every_choice_scores_what_the_equations_say(
    evaluate: Any,
    heads: Heads,
    harness_model: LlamaForCausalLM,  # noqa: F811
    tokenizer: PreTrainedTokenizerFast,
    task: str,
    direction: str,
) -> None:
    limit = 50 if task == "tiny_folds" else 12
    results = evaluate(task, model="hf-iti", limit=limit, direction=direction, **GIVEN)
    masks = masks_of(results, task)
    # How far scikit-learn's fit stops from its end shows in coefficients: then ours are taken.
    shifts = [
        shift_of(heads(task, index), 5, 3)
        if direction == "mass_mean"
        else iti_edit(probes_of(mask), 5, 3, "probe").shift
        for index, mask in enumerate(masks)
    ]
    for index, mask in enumerate(masks):
        if direction == "probe":
            by_hand = shift_of(heads(task, index), 5, 3, "probe")
            torch.testing.assert_close(shifts[index], by_hand, atol=1e-2, rtol=1e-2)
        assert {tuple(p) for p in mask["selected"]} == {
            (layer, int(entry) // HEAD_DIM)
            for layer in range(LAYERS)
            for entry in shifts[index][layer].nonzero()
        }

    def change_of(document: int) -> Any:
        return adding(shifts[document // 25 if task == "tiny_folds" else 0])

    found = tried(results, task)
    assert len(found) == 3 * limit
    assert_scored_as_the_loop_says(found, harness_model, tokenizer, "head", change_of)
    plain = [
        plain_score(harness_model, *tokens_of(tokenizer, f.context, f.continuation), "head", None)
        for f in found
    ]
    assert np.median([abs(f.score[0] - p[0]) for f, p in zip(found, plain, strict=True)]) > 0.1


@pytest.mark.parametrize("plainly", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_prompts_that_begin_and_end_alike_score_what_the_equations_say(
    run_task: Any,  # noqa: F811
    heads: Heads,
    harness_model: LlamaForCausalLM,  # noqa: F811
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: Any,
    plainly: bool,
) -> None:
    make_alike(tmp_path)
    if plainly:
        monkeypatch.setattr(Engine, "longest_branching_path", 0)
    results = run_task("alike", "hf-iti", batch_size, **GIVEN)
    change = adding(shift_of(heads("alike", folder=tmp_path), 5, 3))
    found = tried(results, "alike")
    assert len({one.context + one.continuation for one in found}) < len(found) - 10
    assert_scored_as_the_loop_says(found, harness_model, tokenizer, "head", lambda _: change)


def make_alike(folder: Path) -> None:
    """A task whose prompts go on as answers to others do, and share a long beginning."""
    words = "the cat sees a dog and the bird likes fish under one old tree by the river".split()
    rows = [
        {
            "question": " ".join(words[:length]),
            "choices": [" ".join(words[length : length + n]) for n in (3, 2)] + ["stone road"],
            "label": length % 3,
        }
        for length in range(1, 15)
    ]
    train = [
        {
            "question": f"{words[i % 17]} {words[i % 11]} {words[i % 5]} {' '.join(str(i))}",
            "choices": [words[(i + k) % 17] + " " + words[(i * k) % 13] for k in (1, 2, 3)],
            "label": i % 3,
        }
        for i in range(20)
    ]
    make_task(folder, "alike", {"train": train, "validation": rows}, doc_to_text="{{question}}")


def test_prompts_cut_from_the_left_score_what_the_equations_say(
    evaluate: Any,
    heads: Heads,
    harness_model: LlamaForCausalLM,  # noqa: F811
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    results = evaluate("tiny_choice", model="hf-iti", max_length=9, **GIVEN)
    change = adding(shift_of(heads("tiny_choice", max_length=9), 5, 3))
    found = tried(results, "tiny_choice")
    assert_scored_as_the_loop_says(
        found, harness_model, tokenizer, "head", lambda _: change, max_length=9
    )


def test_texts_are_those_of_a_loop_that_edits_every_generated_token(
    evaluate: Any,
    heads: Heads,
    harness_model: LlamaForCausalLM,  # noqa: F811
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    change = adding(shift_of(heads("tiny_text"), 5, 3))
    for size in (1, 5):
        settings = {"batch_size": size}
        results = evaluate("tiny_text", model="hf-iti", limit=20, settings=settings, **GIVEN)
        assert_generated_as_the_loop_says(
            results, "tiny_text", harness_model, tokenizer, "head", change
        )


# ------------------------------------------------------------------ no document meets itself


def test_a_planted_document_is_in_no_probe_direction_or_sigma(
    run_task: Any,  # noqa: F811
    heads: Heads,
    tasks_folder: Path,
    tmp_path: Path,
) -> None:
    train, scored = (
        [json.loads(line) for line in (tasks_folder / f"{split}.jsonl").open(encoding="utf-8")]
        for split in ("train", "validation")
    )
    train, scored = train[:16], scored[:6]
    planted = [scored[1], scored[4], {**train[0], "question": scored[2]["question"].upper()}]
    mixed = [*train[:5], planted[0], *train[5:9], planted[1], *train[9:], planted[2]]
    task = make_task(tmp_path, "planted", {"train": mixed, "validation": scored})
    given = {**GIVEN, "n_pairs": 16}
    [mask] = masks_of(run_task("planted", "hf-iti", **given), "planted")
    card = load_fit(Path(mask["file"])).card
    of_the_task = {digest(d) for d in task.documents("train")}
    leaked = {digest(d) for d in task.evaluated()} | {digest(task.documents("train")[-1])}
    assert len(card["documents"]) == 16
    assert set(card["documents"]) < of_the_task
    assert not set(card["documents"]) & leaked
    texts = texts_of_pairs(tmp_path, "planted", "iti", n_pairs=16)
    assert not any(d["question"] in text for d in scored for pair in texts for text in pair)
    assert_measured(probes_of(mask), heads("planted", folder=tmp_path, n_pairs=16))
    with pytest.raises(UserError, match="makes 16 contrastive pairs"):
        run_task("planted", "hf-iti", **{**given, "n_pairs": 17})


def test_each_fold_is_steered_by_the_others_documents_alone(evaluate: Any, heads: Heads) -> None:
    """All 25 of the other half: every one of them, and none of the own."""
    masks = masks_of(evaluate("tiny_folds", model="hf-iti", **{**GIVEN, "n_pairs": 25}),
                     "tiny_folds")  # fmt: skip
    cards = [load_fit(Path(mask["file"])).card for mask in masks]
    assert [len(set(card["documents"])) for card in cards] == [25, 25]
    assert not set(cards[0]["documents"]) & set(cards[1]["documents"])
    for index, mask in enumerate(masks):
        assert_measured(probes_of(mask), heads("tiny_folds", index, n_pairs=25))


# ------------------------------------------------------------------ saved vectors


def one_line(caught: pytest.ExceptionInfo[UserError]) -> str:
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_saved_probes_steer_another_run(evaluate: Any, tmp_path: Path) -> None:
    own = evaluate("tiny_choice", model="hf-iti", **GIVEN)
    [mask] = masks_of(own, "tiny_choice")
    given = {"mask": mask["file"], "cache_dir": str(tmp_path / "none")}
    other = evaluate("tiny_choice", model="hf-iti", **given, top_k=5, alpha=3)
    assert numbers(other, "tiny_choice") == numbers(own, "tiny_choice")
    assert not (tmp_path / "none").exists()
    for arguments in ({"top_k": 2}, {"alpha": -4}, {"direction": "probe"}):
        fresh = evaluate("tiny_choice", model="hf-iti", **{**GIVEN, **arguments})
        again = evaluate("tiny_choice", model="hf-iti", **given,
                         **{"top_k": 5, "alpha": 3, **arguments})  # fmt: skip
        assert numbers(again, "tiny_choice") == numbers(fresh, "tiny_choice")
        assert numbers(again, "tiny_choice") != numbers(own, "tiny_choice")


def test_probes_of_a_document_that_is_scored_are_refused(evaluate: Any) -> None:
    masks = masks_of(evaluate("tiny_folds", model="hf-iti", **GIVEN), "tiny_folds")
    with pytest.raises(UserError, match="a document that task tiny_choice scores") as caught:
        evaluate("tiny_choice", model="hf-iti", limit=50, mask=masks[0]["file"], **GIVEN)
    assert masks[0]["file"] in one_line(caught)


def test_iti_refuses_a_mask_of_sadi_and_sadi_probes_of_iti(evaluate: Any) -> None:
    sadi = masks_of(evaluate("tiny_choice", top_k=2, delta=3), "tiny_choice")[0]["file"]
    iti = masks_of(evaluate("tiny_choice", model="hf-iti", **GIVEN), "tiny_choice")[0]["file"]
    with pytest.raises(UserError, match="kind mean_difference, but this run has probes") as caught:
        evaluate("tiny_choice", model="hf-iti", mask=sadi, **GIVEN)
    assert sadi in one_line(caught)
    with pytest.raises(UserError, match="kind probes, but this run has mean_difference") as caught:
        evaluate("tiny_choice", mask=iti, top_k=2, delta=3)
    assert iti in one_line(caught)
    with pytest.raises(UserError, match="kind probes, but this run has mean_difference") as caught:
        evaluate("tiny_choice", model="hf-caa", mask=iti, layer=1, multiplier=1)
    assert iti in one_line(caught)


def test_one_pair_is_refused_in_one_line(evaluate: Any) -> None:
    with pytest.raises(UserError, match="2 contrastive pairs") as caught:
        evaluate("tiny_choice", model="hf-iti", **{**GIVEN, "n_pairs": 1})
    one_line(caught)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_activations_that_are_not_finite_are_refused_in_one_line(value: float) -> None:
    true, false = torch.zeros(2, 6, LAYERS, HEADS, HEAD_DIM)
    true[2, 1, 3, 0] = false[2, 0, 0, 4] = false[5, 2, 2, 2] = value
    collector = ITI().collector(
        Site("head", (nn.Identity(),) * LAYERS, "input", HEADS, HEAD_DIM), 6, 0
    )
    collector.values = torch.stack([true, false]).flatten(3)
    with pytest.raises(UserError, match="2 of 6 pairs") as caught:
        collector.tensors("test")
    one_line(caught)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_collector_fits_the_probes_with_the_seed_that_it_is_given(seed: int) -> None:
    values = torch.randn(2, 20, LAYERS, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    site = Site("head", (nn.Identity(),) * LAYERS, "input", HEADS, HEAD_DIM)
    collector = ITI().collector(site, 20, seed)
    collector.values = values.flatten(3)
    found = collector.tensors("test")
    expected, other = (fit_probes(*values, s, "test")._asdict() for s in (seed, seed + 1))
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found["accuracy"], other["accuracy"])
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == collector.shapes


def test_two_pairs_are_enough_to_fit_and_to_rank(evaluate: Any) -> None:
    [mask] = masks_of(evaluate("tiny_choice", model="hf-iti", **{**GIVEN, "n_pairs": 2}),
                      "tiny_choice")  # fmt: skip
    assert set(probes_of(mask).accuracy.flatten().tolist()) <= {0.0, 0.5, 1.0}


# ------------------------------------------------------------------ what is chosen


def held_out_of(folder: Path, name: str, **arguments: Any) -> tuple[set[str], list[Document]]:
    """What the pairs are of, and the held-out documents."""
    options = read_arm("iti", arguments).options
    plan = find_plan(load(folder, name), options)
    drawn = draw(plan, plan.sources.sources[0], options, ("top_k", "alpha"))
    return {digest(pair.document) for pair in drawn.pairs}, drawn.held_out


def test_top_k_and_alpha_are_chosen_on_held_out_documents_by_what_they_score_there(
    evaluate: Any,
    heads: Heads,
    harness_model: LlamaForCausalLM,  # noqa: F811
    tokenizer: PreTrainedTokenizerFast,
    tasks_folder: Path,
) -> None:
    given = {"grid": "1/5x-2/3", "n_tune": 10, "n_pairs": 12}
    results = evaluate("tiny_choice", model="hf-iti", **given)
    [mask] = masks_of(results, "tiny_choice")
    of_pairs, documents = held_out_of(tasks_folder, "tiny_choice", **given)
    scored = {digest(d) for d in load(tasks_folder, "tiny_choice").evaluated()}
    held_out = {digest(d) for d in documents}
    assert of_pairs == set(load_fit(Path(mask["file"])).card["documents"])
    assert len(held_out) == 10
    assert not held_out & (of_pairs | scored)

    known, table = heads("tiny_choice"), []
    for top_k, alpha in [(0, 0.0), (1, -2.0), (1, 3.0), (5, -2.0), (5, 3.0)]:
        change = adding(shift_of(known, top_k, alpha)) if top_k else None
        values, margins = [], []
        for document in documents:
            context = tokenizer.encode(f"{document['question']} answer :")
            likely = [
                plain_score(harness_model, context, tokenizer.encode(choice), "head", change)[0]
                for choice in document["choices"]
            ]
            values.append(float(np.argmax(likely) == document["label"]))
            right = likely.pop(document["label"])
            margins.append(right - max(likely))
        table.append((top_k, alpha, np.mean(values), np.mean(margins)))
    tuning = mask["tuning"]
    found = [
        tuple(row[k] for k in ("top_k", "alpha", "score", "margin")) for row in tuning["table"]
    ]
    assert found == [pytest.approx(row, abs=1e-4) for row in table]
    chosen = max(table, key=lambda row: (row[2], row[3]))
    assert tuning["chosen"] == {"top_k": chosen[0], "alpha": chosen[1]}
    record = results["config"]["sadi"]["tiny_choice"]
    assert (record["top_k"], record["alpha"]) == (mask["top_k"], mask["alpha"]) == chosen[:2]
    assert "delta" not in json.dumps(record)


def test_without_numbers_the_paper_s_alphas_are_tried(evaluate: Any) -> None:
    """Of this model's 12 heads all: the paper's K are more than there are."""
    [mask] = masks_of(evaluate("tiny_choice", model="hf-iti", n_tune=8), "tiny_choice")
    tried_ = [(row["top_k"], row["alpha"]) for row in mask["tuning"]["table"]]
    assert tried_ == [(0, 0), *((12, alpha) for alpha in (10, 15, 20, 25, 30))]


def test_a_number_that_is_given_is_not_tuned(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments, wanted in (
        ({"top_k": 2, "alpha": "auto"}, {(2, a) for a in (10, 15, 20, 25, 30)}),
        ({"top_k": "auto", "alpha": 2.5, "grid": "1/3x9"}, {(1, 2.5), (3, 2.5)}),
    ):
        results = evaluate("tiny_choice", model="hf-iti", n_tune=8, **arguments)
        [mask] = masks_of(results, "tiny_choice")
        rows = mask["tuning"]["table"][1:]
        assert {(row["top_k"], row["alpha"]) for row in rows} == wanted
    monkeypatch.setattr(Engine, "score_grid", None)
    for arguments, alpha in (({"top_k": 2, "alpha": 4}, 4), ({"top_k": 2}, 15)):
        [mask] = masks_of(evaluate("tiny_choice", model="hf-iti", **arguments), "tiny_choice")
        assert (mask["top_k"], mask["alpha"]) == (2, alpha)
        assert "tuning" not in mask


def test_of_equal_settings_the_smaller_edit_is_taken() -> None:
    edit_size = ITI().edit_size

    def equal(*settings: tuple[int, float]) -> list[Outcome]:
        bad = Outcome(Setting(0, 0.0), 0.1, 0.0, 0.0, 0.0, -1.0)
        return [bad, *(Outcome(Setting(*s), 0.5, 0.1, 0.4, 0.1, 2.0) for s in settings)]

    assert ranked(equal((48, 15.0), (64, 10.0), (48, 30.0)), edit_size)[0] == 2
    assert ranked(equal((2, 15.0), (1, -20.0), (3, 10.0)), edit_size)[0] == 2
    worse = equal((1, 1.0))[1]._replace(margin=1.9)
    assert ranked([worse, *equal((9, 9.0))], edit_size)[0] == 2


def test_where_heads_change_nothing_nothing_is_steered(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def silent(self: Any, *arguments: Any, **keywords: Any) -> None:
        create(self, *arguments, **keywords)
        with torch.no_grad():
            for block in self._model.model.layers:
                block.self_attn.o_proj.weight.zero_()

    create = SteeredModel._create_model
    monkeypatch.setattr(SteeredModel, "_create_model", silent)
    [mask] = masks_of(evaluate("tiny_choice", model="hf-iti", n_tune=8), "tiny_choice")
    assert mask["tuning"]["chosen"] == {"top_k": 0, "alpha": 0}
    assert mask["tuning"]["p_max"] == 1
    assert mask["selected"] == []
    assert "no setting of iti beats the unsteered model" in caplog.text
