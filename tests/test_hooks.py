"""Hooks come off on every way out, and leave no trace in the model."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from helpers.hooks import count_hooks, replaced
from helpers.models import tiny_llama
from sadi_lmeval.architecture.hooks import Side, keeping, passing_over, visiting
from sadi_lmeval.architecture.positions import Points
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.edits.contract import Edits, Reads, reading
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.prefill import steered_generation
from sadi_lmeval.passes.sequences import Tree, pack

IDS = torch.tensor([[5, 9, 7, 4], [8, 6, 3, 11]])


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama(40)


@pytest.fixture(autouse=True)
def logits_are_the_same_before_and_after(model: LlamaForCausalLM) -> Iterator[None]:
    """Around every test here: the same bits come out, and nothing is left in any module."""
    with torch.no_grad():
        before = model(IDS).logits
        yield
        assert torch.equal(before, model(IDS).logits)
    assert count_hooks(model) == 0
    assert replaced(model) == 0


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
    def results() -> Generator[Tensor]:
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
    return DiagonalEdits(find_site(model, "head"), [Edit(gain=torch.full((3, 32), 4.0))], clean)


@pytest.mark.parametrize("clean", [False, True])
def test_a_failing_forward_pass_leaves_no_edit_behind(model: LlamaForCausalLM, clean: bool) -> None:
    tree = Tree()
    tree.add([5, 10_000])  # not in the vocabulary
    batch = pack([tree], 0, torch.float32, torch.device("cpu"))
    points = Points.of([(0, 1)], 1, torch.device("cpu"))
    forward, edit = Forward(model), edits(model, clean)
    with pytest.raises(IndexError):
        forward.activations(batch, points, [Reads(edit.site)])
    with pytest.raises(IndexError), edit.at(points, torch.tensor([0]), None):
        forward.logits(batch, points)
    with pytest.raises(IndexError), reading(Reads(edit.site), points):
        forward.logits(batch, points)
    assert count_hooks(model) == 0


@pytest.mark.parametrize("clean", [False, True])
def test_a_failing_generation_leaves_no_edit_behind(model: LlamaForCausalLM, clean: bool) -> None:
    ones = torch.ones_like(IDS)
    with (
        pytest.raises(ZeroDivisionError),
        steered_generation(model, edits(model, clean), 0, IDS, ones),
    ):
        print(1 / (count_hooks(model) - 4))  # three layers, and the model itself
    bad = torch.tensor([[5, 10_000]])
    seen = torch.ones_like(bad)
    with pytest.raises(IndexError), steered_generation(model, edits(model, clean), 0, bad, seen):
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


# ------------------------------------------------------------------ keeping and passing over


def block_output(model: LlamaForCausalLM, layer: int) -> Tensor:
    """What a decoder block gives: what goes into the next one, or into the last norm."""
    after: list[nn.Module] = [*model.model.layers, model.model.norm]
    taken: list[Tensor] = []
    handle = after[layer + 1].register_forward_pre_hook(lambda m, given: taken.append(given[0]))
    model(IDS)
    handle.remove()
    return taken[0]


def test_keeping_keeps_what_modules_give_and_changes_no_logit_bit(
    model: LlamaForCausalLM,
) -> None:
    plain = model(IDS).logits
    blocks = {0: model.model.layers[0], 1: model.model.layers[1]}
    with keeping(blocks) as kept:
        assert torch.equal(plain, model(IDS).logits)
    assert sorted(kept.states) == [0, 1]
    for layer in (0, 1):
        assert torch.equal(kept.states[layer], block_output(model, layer))
    assert kept.in_tuple == [False, False]


class InTuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return x + 1, None


def test_keeping_takes_the_first_part_of_a_tuple() -> None:
    module = InTuple()
    with keeping({4: module}) as kept:
        module(torch.zeros(1, 2, 3))
    assert torch.equal(kept.states[4], torch.ones(1, 2, 3))
    assert kept.in_tuple == [True]
    assert count_hooks(module) == 0


@pytest.mark.parametrize("start", [1, 2])
def test_a_pass_over_blocks_goes_on_with_the_states_that_it_is_given(
    model: LlamaForCausalLM, start: int
) -> None:
    plain = model(IDS).logits
    states = block_output(model, start - 1)
    over = list(model.model.layers[:start])
    ran: list[int] = []
    with (
        visiting(layers(model), "output", lambda layer, activations: ran.append(layer)),
        passing_over(over, states, in_tuple=False),
    ):
        assert replaced(model) == start
        assert torch.equal(plain, model(IDS).logits)
        assert torch.equal(plain, model(IDS + 1).logits)
    assert ran == 2 * list(range(start, 3))


def test_blocks_that_give_tuples_are_passed_over_with_a_tuple() -> None:
    module, states = InTuple(), torch.full((1, 2, 3), 7.0)
    with passing_over([module], states, in_tuple=True):
        found = module(torch.zeros(1, 2, 3))
    assert found[0] is states
    assert torch.equal(module(torch.zeros(1, 2, 3))[0], torch.ones(1, 2, 3))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_blocks_run_again_after_an_error_of_the_block(
    model: LlamaForCausalLM, error: type[BaseException]
) -> None:
    states = block_output(model, 1)
    with pytest.raises(error), passing_over(list(model.model.layers[:2]), states, False):
        raise error
    assert replaced(model) == 0


def test_a_forward_that_someone_else_put_there_comes_back(model: LlamaForCausalLM) -> None:
    """As accelerate does, to move weights to where they are needed."""
    block, own = model.model.layers[0], model.model.layers[0].forward
    block.forward = lambda *arguments, **keywords: own(*arguments, **keywords)
    theirs = block.forward
    try:
        with passing_over([block], block_output(model, 0), False):
            assert block.forward is not theirs
        assert block.forward is theirs
    finally:
        del block.forward


def test_kept_hooks_are_gone_after_an_error_of_the_pass(model: LlamaForCausalLM) -> None:
    with pytest.raises(IndexError), keeping({0: model.model.layers[0]}):
        model(torch.tensor([[10_000]]))
    assert count_hooks(model) == 0
