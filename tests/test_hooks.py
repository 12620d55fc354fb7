"""Hooks come off on every way out, and leave no trace in the model."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conftest import tiny_llama
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from sadi_lmeval.forward import Forward
from sadi_lmeval.hooks import Side, visiting
from sadi_lmeval.interventions.edit import Edit, Edits, reading
from sadi_lmeval.positions import Points
from sadi_lmeval.prefill import steered_prefill
from sadi_lmeval.sequences import Tree, pack
from sadi_lmeval.sites import find_site

IDS = torch.tensor([[5, 9, 7, 4], [8, 6, 3, 11]])


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama(40)


@pytest.fixture(autouse=True)
def logits_are_the_same_before_and_after(model: LlamaForCausalLM) -> Iterator[None]:
    """Around every test here: the same bits come out, and no hook is left."""
    with torch.no_grad():
        before = model(IDS).logits
        yield
        assert torch.equal(before, model(IDS).logits)
    assert count_hooks(model) == 0


def count_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def layers(model: LlamaForCausalLM) -> dict[int, nn.Module]:
    return {i: block.mlp for i, block in enumerate(model.model.layers)}


def doubled(layer: int, activations: Tensor) -> Tensor:
    return activations * 2


@pytest.mark.parametrize("side", ["input", "output"])
def test_hooks_are_there_inside_and_gone_after_the_block(
    model: LlamaForCausalLM, side: Side
) -> None:
    with visiting(layers(model), side, doubled):
        assert count_hooks(model) == 3
        steered = model(IDS).logits
    assert count_hooks(model) == 0
    assert not torch.equal(steered, model(IDS).logits)


@pytest.mark.parametrize("side", ["input", "output"])
def test_hooks_are_gone_after_an_error_of_the_block(model: LlamaForCausalLM, side: Side) -> None:
    with pytest.raises(KeyboardInterrupt), visiting(layers(model), side, doubled):
        raise KeyboardInterrupt
    assert count_hooks(model) == 0


@pytest.mark.parametrize("side", ["input", "output"])
def test_hooks_are_gone_after_an_error_of_a_visit_in_a_later_layer(
    model: LlamaForCausalLM, side: Side
) -> None:
    def visit(layer: int, activations: Tensor) -> Tensor:
        if layer == 2:
            raise ZeroDivisionError
        return activations * 2

    with pytest.raises(ZeroDivisionError), visiting(layers(model), side, visit):
        model(IDS)
    assert count_hooks(model) == 0


def test_hooks_are_gone_after_an_error_of_registering_the_last_one(
    model: LlamaForCausalLM,
) -> None:
    modules: dict[int, object] = {**layers(model), 3: "no module"}
    entered = []
    with pytest.raises(AttributeError), visiting(modules, "output", doubled):  # type: ignore[arg-type]
        entered.append(True)
    assert not entered
    assert count_hooks(model) == 0


def test_hooks_are_gone_when_a_generator_that_holds_them_is_closed(
    model: LlamaForCausalLM,
) -> None:
    def results() -> Iterator[Tensor]:
        with visiting(layers(model), "output", doubled):
            while True:
                yield model(IDS).logits

    generator = results()
    next(generator)
    assert count_hooks(model) == 3
    generator.close()
    assert count_hooks(model) == 0


def test_leaving_an_inner_block_leaves_the_outer_hooks(model: LlamaForCausalLM) -> None:
    with visiting(layers(model), "output", doubled):
        outer = model(IDS).logits
        with visiting(layers(model), "output", doubled):
            assert not torch.equal(outer, model(IDS).logits)
        assert torch.equal(outer, model(IDS).logits)
        assert count_hooks(model) == 3


def test_a_visit_that_returns_none_changes_no_logit_bit(model: LlamaForCausalLM) -> None:
    plain = model(IDS).logits
    seen: list[int] = []
    for side in ("input", "output"):
        with visiting(layers(model), side, lambda layer, activations: seen.append(layer)):
            assert torch.equal(plain, model(IDS).logits)
    assert seen == [0, 1, 2, 0, 1, 2]


def test_the_other_outputs_and_inputs_of_a_module_pass_untouched(model: LlamaForCausalLM) -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x + 1, y

    module, x, y = Pair(), torch.ones(1, 2, 3), torch.zeros(2)
    with visiting({0: module}, "output", doubled):
        first, second = module(x, y)
    assert torch.equal(first, torch.full((1, 2, 3), 4.0))
    assert second is y
    with visiting({0: module}, "input", doubled):
        first, second = module(x, y)
    assert torch.equal(first, torch.full((1, 2, 3), 3.0))
    assert second is y


def edits(model: LlamaForCausalLM, clean: bool) -> Edits:
    return Edits(find_site(model, "head"), [Edit(gain=torch.full((3, 32), 4.0))], clean)


@pytest.mark.parametrize("clean", [False, True])
def test_a_failing_forward_pass_leaves_no_edit_behind(model: LlamaForCausalLM, clean: bool) -> None:
    tree = Tree()
    tree.add([5, 10_000])  # not in the vocabulary
    batch = pack([tree], 0, torch.float32, torch.device("cpu"))
    points = Points.of([(0, 1)], 1, torch.device("cpu"))
    forward, edit = Forward(model), edits(model, clean)
    with pytest.raises(IndexError):
        forward.activations(batch, points, edit.site)
    with pytest.raises(IndexError), edit.at(points, torch.tensor([0]), None):
        forward.logits(batch, points)
    with pytest.raises(IndexError), reading(edit.site, points):
        forward.logits(batch, points)
    assert count_hooks(model) == 0


@pytest.mark.parametrize("clean", [False, True])
def test_a_failing_generation_leaves_no_edit_behind(model: LlamaForCausalLM, clean: bool) -> None:
    ones = torch.ones_like(IDS)
    with (
        pytest.raises(ZeroDivisionError),
        steered_prefill(model, edits(model, clean), 0, IDS, ones),
    ):
        print(1 / (count_hooks(model) - 4))  # three layers, and the model itself
    bad = torch.tensor([[5, 10_000]])
    seen = torch.ones_like(bad)
    with pytest.raises(IndexError), steered_prefill(model, edits(model, clean), 0, bad, seen):
        model(bad)
    assert count_hooks(model) == 0


def test_writing_at_points_returns_a_copy(model: LlamaForCausalLM) -> None:
    activations = torch.randn(2, 4, 8)
    before = activations.clone()
    points = Points.of([(0, 3), (1, 1)], 2, torch.device("cpu"))
    new = points.write(activations, torch.zeros(2, 8))
    assert torch.equal(activations, before)
    assert torch.equal(new[0, 3], torch.zeros(8))
    assert torch.equal(new[1, 1], torch.zeros(8))
    flat = activations.flatten(0, 1)
    assert torch.equal(points.read(flat), points.read(activations))
    assert torch.equal(points.write(flat, torch.zeros(2, 8)), new.flatten(0, 1))
