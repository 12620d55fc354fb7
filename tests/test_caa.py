"""What is CAA's own: one vector a layer, and the layer that is chosen.

What it has in common with other methods is in ``test_each_method.py``.
"""

from __future__ import annotations

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
from helpers.results import masks_of
from helpers.tasks import held_out_of
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.caa import CAA
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
    edit_size = CAA().edit_size

    def chosen(*settings: tuple[int, float]) -> Setting:
        """Of equally good ones."""
        outcomes = [Outcome(Setting(*s), 0.5, 0.1, 0.4, 0.1, 2.0) for s in settings]
        return outcomes[ranked(outcomes, edit_size)[0]].setting

    assert chosen((0, 2.0), (2, 1.0), (1, -1.5)) == (2, 1.0)
    assert chosen((1, -0.5), (2, 1.0)) == (1, -0.5)
    assert chosen((1, 1.0), (2, 1.0), (0, 1.0)) == (1, 1.0)
    assert chosen((2, 0.5), (0, 0.0)) == (0, 0.0)
