"""What is ITI's own: probes, directions, and how heads are chosen.

What it has in common with other methods is in ``test_each_method.py``.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import Measured
from helpers.equations.contract import HEAD_DIM, HEADS, LAYERS
from helpers.equations.iti import EQUATIONS, heads_of, iti_shift
from helpers.loops import (
    adding,
    assert_scored_as_the_loop_says,
    plain_score,
    tokens_of,
    tried,
)
from helpers.messages import one_line
from helpers.results import masks_of
from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.iti import ITI, Probes, best_heads, fit_probes, iti_edit
from sadi_lmeval.model import SteeredModel
from sadi_lmeval.settings import Setting
from sadi_lmeval.steering.outcome import Outcome, ranked
from sadi_lmeval.storage.fit_file import load_fit

GIVEN = EQUATIONS.given


def probes_of(mask: dict[str, Any]) -> Probes:
    return Probes(**load_fit(Path(mask["file"])).tensors)


# ------------------------------------------------------------------ what is measured


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
    expected = iti_shift(heads_of(true.flatten(2).double(), false.flatten(2).double(), {}), 5, -2.5,
                        direction)  # fmt: skip
    edit = iti_edit(found._asdict(), 5, -2.5, direction)
    assert edit.shift is not None
    assert not edit.gain.any()
    torch.testing.assert_close(edit.shift, expected, atol=2e-2, rtol=2e-3)
    assert torch.equal(edit.shift != 0, expected != 0)


# ------------------------------------------------------------------ scores


@pytest.mark.parametrize("task", ["tiny_choice", "tiny_folds", "tiny_empty", "tiny_input"])
def test_every_choice_scores_what_the_equations_say_along_the_probe_s_coefficients(
    evaluate: Any,
    measured: Measured,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    task: str,
) -> None:
    limit = 50 if task == "tiny_folds" else 12
    results = evaluate(task, model="hf-iti", limit=limit, direction="probe", **GIVEN)
    shifts = []
    for index, mask in enumerate(masks_of(results, task)):
        # How far scikit-learn's fit stops from its end shows in coefficients: then ours are taken.
        shift = iti_edit(probes_of(mask)._asdict(), 5, 3, "probe").shift
        assert shift is not None
        known = measured("iti", task, index)
        torch.testing.assert_close(shift, iti_shift(known, 5, 3, "probe"), atol=1e-2, rtol=1e-2)
        assert {tuple(place) for place in mask["selected"]} == {
            (layer, int(entry) // HEAD_DIM)
            for layer in range(LAYERS)
            for entry in shift[layer].nonzero()
        }
        shifts.append(shift)

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


# ------------------------------------------------------------------ few pairs, and bad ones


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
    true, false = values
    expected, other = (fit_probes(true, false, s, "test")._asdict() for s in (seed, seed + 1))
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not torch.equal(found["accuracy"], other["accuracy"])
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    assert shapes == ITI(gate="prompt").collector(site, 20, seed).shapes
    assert shapes == collector.shapes | {
        "weight": (LAYERS, HEADS, HEAD_DIM),
        "bias": (LAYERS, HEADS),
    }


def test_two_pairs_are_enough_to_fit_and_to_rank(evaluate: Any) -> None:
    [mask] = masks_of(evaluate("tiny_choice", model="hf-iti", **{**GIVEN, "n_pairs": 2}),
                      "tiny_choice")  # fmt: skip
    assert set(probes_of(mask).accuracy.flatten().tolist()) <= {0.0, 0.5, 1.0}


# ------------------------------------------------------------------ what is chosen


def test_without_numbers_the_paper_s_alphas_are_tried(evaluate: Any) -> None:
    """Of this model's 12 heads all: the paper's K are more than there are."""
    [mask] = masks_of(evaluate("tiny_choice", model="hf-iti", n_tune=8), "tiny_choice")
    tried_ = [(row["top_k"], row["alpha"]) for row in mask["tuning"]["table"]]
    assert tried_ == [(0, 0), *((12, alpha) for alpha in (10, 15, 20, 25, 30))]


def test_of_equal_settings_the_smaller_edit_is_taken() -> None:
    edit_size = partial(ITI().edit_size, tensors={})

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


def test_each_probe_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several wait for one another: on two cores a probe took 183 ms, and takes 11."""
    threads: list[int] = []
    fit = LogisticRegression.fit

    def watched(self: Any, *arguments: Any) -> Any:
        threads.extend(each["num_threads"] for each in threadpool_info() if
                       each["user_api"] == "blas")  # fmt: skip
        return fit(self, *arguments)

    monkeypatch.setattr(LogisticRegression, "fit", watched)
    with threadpool_limits(2, "blas"):
        fit_probes(torch.randn(6, 1, 2, 4), torch.randn(6, 1, 2, 4), 0, "x")
    assert threads
    assert set(threads) == {1}
