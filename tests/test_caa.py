"""What is CAA's own: one vector a layer, and the layer that is chosen.

What it has in common with other methods is in ``test_each_method.py``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import Measured
from helpers.equations.caa import EQUATIONS, caa_shift
from helpers.equations.contract import LAYERS, WIDTH
from helpers.loops import adding, plain_score
from helpers.messages import one_line
from helpers.models import tiny_llama
from helpers.results import masks_of
from helpers.tasks import held_out_of
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.caa import CAA, principal_component, random_vectors
from sadi_lmeval.settings import Setting
from sadi_lmeval.steering.outcome import Outcome, ranked

GIVEN = EQUATIONS.given

# ------------------------------------------------------------------ the edit


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


@pytest.mark.parametrize("layer", [3, -1, 1.5])
def test_a_layer_that_the_model_does_not_have_is_refused(
    evaluate: Any, monkeypatch: pytest.MonkeyPatch, layer: float
) -> None:
    monkeypatch.setattr("sadi_lmeval.model.SteeredModel._create_model", None)
    with pytest.raises(UserError, match=f"layer={layer}") as caught:
        evaluate("tiny_choice", model="hf-caa", **{**GIVEN, "layer": layer})
    one_line(caught)


# ------------------------------------------------------------------ the direction


@pytest.mark.quick
def test_the_principal_component_is_that_of_pair_centred_states() -> None:
    """What both texts of a pair share is no part of it, however large."""
    generator = np.random.default_rng(0)
    shared = 100 * generator.normal(size=(20, 3))
    apart = np.array([[0.0, 2.0, 0.0], [0.0, 3.0, 0.1]] * 10)
    found = principal_component(shared + apart, shared - apart)
    assert found == pytest.approx([0, 1, 0], abs=0.1)
    assert np.linalg.norm(found) == pytest.approx(1)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("ahead", "expected"),
    [
        ([3, 3, -1], 1),  # two of three
        ([-3, -3, 1], -1),
        ([5, -1, -1], -1),  # by majority, not by the sum
        ([1, -1], 1),  # a tie: the largest coordinate is positive
        ([-1, 1, 0], 1),
    ],
)
def test_its_sign_is_that_of_the_majority(ahead: list[float], expected: int) -> None:
    right = np.outer(ahead, [0.6, 0.8])
    found = principal_component(right, np.zeros_like(right))
    assert found == pytest.approx(expected * np.array([0.6, 0.8]))


@pytest.mark.quick
@pytest.mark.parametrize("direction", ["pca", "probe", "random"])
def test_every_direction_has_the_length_of_the_mean_difference(direction: Any) -> None:
    site = find_site(tiny_llama(40), "hidden", "residual")
    generator = torch.Generator().manual_seed(0)
    sides = [torch.randn(9, site.layers, site.width, generator=generator) for _ in range(2)]
    sides[0][:, 1] = sides[1][:, 1]  # in this layer there is no difference at all
    found = {}
    for name in ("mean", direction):
        method = CAA(direction=name)
        collector = method.collector(site, 9, 0)
        for sign, side in zip((1, -1), sides, strict=True):
            collector.add(list(range(9)), [sign] * 9, side)
        tensors = collector.tensors("test")
        edits = method.edits(site, tensors, [Setting(n, 1) for n in range(site.layers)], 0)
        rows = torch.zeros(1, site.width)
        every = [edits.apply(n, rows, torch.tensor([n])) for n in range(site.layers)]
        found[name] = torch.cat(every)
    lengths = {name: v.norm(dim=1) for name, v in found.items()}
    torch.testing.assert_close(lengths[direction], lengths["mean"])
    assert lengths["mean"][1] == 0
    assert torch.equal(found[direction][1], torch.zeros(site.width))
    cosine = torch.cosine_similarity(found[direction][[0, 2]], found["mean"][[0, 2]])
    assert (cosine < 0.99).all()


@pytest.mark.quick
def test_a_random_direction_depends_on_the_seed_and_the_layer_alone() -> None:
    v = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    drawn = random_vectors(v, 5)
    assert torch.equal(drawn, random_vectors(v, 5))
    assert not torch.equal(drawn, random_vectors(v, 6))
    torch.testing.assert_close(random_vectors(3 * v, 5), 3 * drawn)
    unit = drawn / drawn.norm(dim=1, keepdim=True)
    assert (unit @ unit.T - torch.eye(4)).abs().max() < 0.5
    assert torch.cosine_similarity(drawn, v).abs().max() < 0.5


# ------------------------------------------------------------------ what is chosen


def test_the_forced_target_of_a_generation_task_is_edited_while_tuning(
    evaluate: Any,
    measured: Measured,
    harness_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    tasks_folder: Path,
) -> None:
    results = evaluate("tiny_text", model="hf-caa", grid="0/2x1", n_tune=8)
    [mask] = masks_of(results, "tiny_text")
    _, documents = held_out_of(tasks_folder, "tiny_text", "caa", n_tune=8, n_pairs=12)
    known = measured("caa", "tiny_text")
    for row in mask["tuning"]["table"]:
        change = adding(caa_shift(known, row["layer"], row["multiplier"]))
        scores = []
        for document in documents:
            context = tokenizer.encode(f"{document['question']} answer :")
            target = tokenizer.encode(document["answer"])
            value, _ = plain_score(harness_model, context, target, "residual", change)
            scores.append(value / len(target))
        assert row["score"] == pytest.approx(np.mean(scores), abs=1e-4)


def test_of_equal_settings_the_smaller_edit_is_taken_wherever_it_is() -> None:
    edit_size = partial(CAA().edit_size, tensors={})

    def chosen(*settings: tuple[int, float]) -> Setting:
        """Of equally good ones."""
        outcomes = [Outcome(Setting(*s), 0.5, 0.1, 0.4, 0.1, 2.0) for s in settings]
        return outcomes[ranked(outcomes, edit_size)[0]].setting

    assert chosen((0, 2.0), (2, 1.0), (1, -1.5)) == (2, 1.0)
    assert chosen((1, -0.5), (2, 1.0)) == (1, -0.5)
    assert chosen((1, 1.0), (2, 1.0), (0, 1.0)) == (1, 1.0)
    assert chosen((2, 0.5), (0, 0.0)) == (0, 0.0)
