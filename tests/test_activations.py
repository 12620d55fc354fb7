"""Difference extraction against a plain loop over texts."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from helpers.oracle import SITES, VOCAB, make_model, plain_pass
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.methods.collectors import Kept, KeptPrompts, MeanDifference
from sadi_lmeval.passes.activations import Answers, TokenPair, TokenPrompt, read_pairs
from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.processes import Processes
from sadi_lmeval.types import Element, HiddenSite

PAIRS = [
    TokenPair([5, 9, 7, 4, 8, 33], [5, 9, 7, 4, 8, 21, 3, 14]),  # a shared prompt
    TokenPair([5, 9, 7], [5, 9, 7, 4]),  # one text begins the other
    TokenPair([5, 9, 7, 4], [5, 9]),
    TokenPair([11, 12, 13], [44, 3]),  # nothing is shared
    TokenPair([50], [51]),
    TokenPair([6, 6, 6], [6, 6, 6]),  # the same text twice
]
BEGINNING = [(7 * i + 3) % 60 for i in range(20)]
SAME_BEGINNING = [
    TokenPair([*BEGINNING, *positive], [*BEGINNING, *negative])
    for positive, negative in (([5], [6]), ([5, 9, 7], [5, 9]), ([], [8]), ([1, 2], [3]))
]
FEW_TOKENS = Bounds(None, 30, 0)
LAYOUTS = [Bounds(1, 30, 0), Bounds(2, 1000, 0), FEW_TOKENS, Bounds(None, 10**6, 0, start=10**6)]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return make_model()


def measure(
    model: LlamaForCausalLM,
    pairs: list[TokenPair],
    element: Element,
    hidden_site: HiddenSite = "mlp",
    branching: bool = True,
    bounds: Bounds = FEW_TOKENS,
) -> Tensor:
    site = find_site(model, element, hidden_site)
    mean = MeanDifference(site, len(pairs))
    read_pairs(Forward(model), [(site, mean)], pairs, 2, branching, bounds, "test")
    [(name, found)] = mean.tensors("test").items()
    assert name == "difference"
    return found


def plain_loop(model: LlamaForCausalLM, pairs: list[TokenPair], where: str) -> Tensor:
    """(1/T) Σ (A_pos − A_neg) at the last tokens, one text at a time, ``[layers, width]``."""
    total: Tensor | float = 0.0
    for positive, negative in pairs:
        total = total + plain_pass(model, positive, len(positive) - 1, where).activations
        total = total - plain_pass(model, negative, len(negative) - 1, where).activations
    assert isinstance(total, Tensor)
    return total / len(pairs)


@pytest.mark.parametrize(("element", "hidden_site"), SITES)
def test_the_mean_difference_equals_a_plain_loop_in_every_layout(
    model: LlamaForCausalLM, element: Element, hidden_site: HiddenSite
) -> None:
    where = hidden_site if element == "hidden" else element
    expected = plain_loop(model, PAIRS, where).float()
    assert expected.abs().max() > 0.1
    site = find_site(model, element, hidden_site)
    for branching in (True, False):
        for bounds in LAYOUTS:
            found = measure(model, PAIRS, element, hidden_site, branching, bounds)
            assert found.shape == (site.layers, site.entries, site.entry_width)
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.flatten(1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("element", "hidden_site"), SITES)
def test_the_mean_difference_equals_a_plain_loop_where_texts_begin_alike(
    model: LlamaForCausalLM, element: Element, hidden_site: HiddenSite
) -> None:
    pairs = SAME_BEGINNING + PAIRS
    where = hidden_site if element == "hidden" else element
    expected = plain_loop(model, pairs, where).float()
    for bounds in LAYOUTS:
        widest: list[int] = []
        handle = model.model.embed_tokens.register_forward_hook(
            lambda m, arguments, out, widest=widest: widest.append(out.shape[1])
        )
        found = measure(model, pairs, element, hidden_site, True, bounds)
        handle.remove()
        torch.testing.assert_close(found.flatten(1), expected, atol=1e-5, rtol=1e-5)
        assert sum(width >= 16 for width in widest) == 1  # what they begin with, once


def test_what_all_pairs_begin_with_is_computed_once_where_it_is_all_that_they_share(
    model: LlamaForCausalLM,
) -> None:
    pairs = [TokenPair([*BEGINNING, i], [*BEGINNING, 30 + i]) for i in range(10)]
    site = find_site(model, "head")
    tokens: list[int] = []
    handle = model.model.embed_tokens.register_forward_hook(
        lambda m, arguments, out: tokens.append(out.shape[:2].numel())
    )
    readers = [(site, MeanDifference(site, len(pairs)))]
    read_pairs(Forward(model), readers, pairs, 2, True, Bounds(1, 100, 0), "test")
    handle.remove()
    assert sum(tokens) < len(BEGINNING) + 10 * 4


@pytest.mark.parametrize("branching", [False, True])
def test_the_mean_difference_does_not_depend_on_the_order_of_the_pairs(
    model: LlamaForCausalLM, branching: bool
) -> None:
    shuffled = list(PAIRS)
    random.Random(1).shuffle(shuffled)
    assert shuffled != PAIRS
    one, other = (measure(model, p, "hidden", branching=branching) for p in (PAIRS, shuffled))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("branching", [False, True])
def test_swapping_positive_and_negative_changes_the_sign(
    model: LlamaForCausalLM, branching: bool
) -> None:
    swapped = [TokenPair(negative, positive) for positive, negative in PAIRS]
    one, other = (measure(model, p, "neuron", branching=branching) for p in (PAIRS, swapped))
    torch.testing.assert_close(one, -other, atol=1e-6, rtol=0)


def test_pairs_of_the_same_text_have_no_difference(model: LlamaForCausalLM) -> None:
    same = [TokenPair([5, 9, 7], [5, 9, 7]), TokenPair([4], [4])]
    for branching in (True, False):
        assert measure(model, same, "head", branching=branching).abs().max() < 1e-6


def test_every_pair_counts_once(model: LlamaForCausalLM) -> None:
    doubled = measure(model, PAIRS * 2, "head")
    torch.testing.assert_close(doubled, measure(model, PAIRS, "head"), atol=1e-6, rtol=0)


def test_extraction_changes_no_logit_bit_and_needs_no_gradients(model: LlamaForCausalLM) -> None:
    ids = torch.arange(VOCAB)[None, :9]
    with torch.no_grad():
        before = model(ids).logits
    assert not measure(model, PAIRS, "head").requires_grad
    with torch.no_grad():
        assert torch.equal(before, model(ids).logits)


# ------------------------------------------------------------------ several sites, and probes


def computed(model: LlamaForCausalLM, readers: list[Any], branching: bool) -> list[int]:
    """Tokens that are computed, a number a pass."""
    tokens: list[int] = []
    handle = model.model.embed_tokens.register_forward_hook(
        lambda m, arguments, out: tokens.append(out.shape[:2].numel())
    )
    pairs = SAME_BEGINNING + PAIRS
    read_pairs(Forward(model), readers, pairs, 2, branching, FEW_TOKENS, "test")
    handle.remove()
    return tokens


@pytest.mark.parametrize("branching", [False, True])
def test_several_sites_are_read_in_the_passes_of_one_and_each_as_alone(
    model: LlamaForCausalLM, branching: bool
) -> None:
    pairs = SAME_BEGINNING + PAIRS
    sites = [find_site(model, *site) for site in SITES]
    together = [(site, MeanDifference(site, len(pairs))) for site in [*sites, sites[0]]]
    passes = computed(model, together, branching)
    assert passes == computed(model, [(sites[0], MeanDifference(sites[0], 1))], branching)
    for (site, mean), (element, hidden_site) in zip(together, [*SITES, SITES[0]], strict=True):
        found = mean.tensors("test")["difference"]
        assert found.shape == (site.layers, site.entries, site.entry_width)
        assert torch.equal(found, measure(model, pairs, element, hidden_site, branching))


@pytest.mark.parametrize("branching", [False, True])
def test_probes_keep_every_activation_under_its_pair_and_its_side(
    model: LlamaForCausalLM, branching: bool
) -> None:
    pairs = SAME_BEGINNING + PAIRS
    site = find_site(model, "head")
    for bounds in LAYOUTS:
        probes = Kept("all", site, len(pairs), {}, lambda positive, negative, label: {})
        read_pairs(Forward(model), [(site, probes)], pairs, 2, branching, bounds, "test")
        assert probes.values.dtype == torch.float32
        for number, pair in enumerate(pairs):
            for side, text in enumerate(pair):
                expected = plain_pass(model, text, len(text) - 1, "head").activations.float()
                found = probes.values[side, number]
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------ labelled prompts


PROMPTS = [
    TokenPrompt(text, Answers(number % 4, number % 3, (-1.0, -number / 7)))
    for number, pair in enumerate([*SAME_BEGINNING, *PAIRS])
    for text in pair
]


@pytest.mark.parametrize("branching", [False, True])
def test_prompts_are_read_at_their_last_token_and_keep_their_answers(
    model: LlamaForCausalLM, branching: bool
) -> None:
    site = find_site(model, "hidden", "residual")
    for bounds in LAYOUTS:
        kept = KeptPrompts("all", site, len(PROMPTS), {}, lambda values, answers, label: {})
        read_pairs(Forward(model), [(site, kept)], PROMPTS, 2, branching, bounds, "test")
        assert kept.answers == {n: prompt.answers for n, prompt in enumerate(PROMPTS)}
        for number, (text, _) in enumerate(PROMPTS):
            expected = plain_pass(model, text, len(text) - 1, "residual").activations.float()
            torch.testing.assert_close(kept.values[number], expected, atol=1e-4, rtol=1e-4)


class OnePart(Processes):
    """One of several processes, whose sums and unions are made by hand."""

    def all_gather(self, part: Any) -> list[Any]:
        return [part]

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return tensor


def test_what_several_processes_have_read_of_prompts_adds_up(model: LlamaForCausalLM) -> None:
    site = find_site(model, "hidden", "residual")

    def read(processes: Processes) -> KeptPrompts:
        kept = KeptPrompts("all", site, len(PROMPTS), {}, lambda values, answers, label: {})
        read_pairs(Forward(model), [(site, kept)], PROMPTS, 2, True, FEW_TOKENS, "test", processes)
        return kept

    whole, parts = read(Processes()), [read(OnePart(rank, 2)) for rank in range(2)]
    assert all(0 < len(part.answers) < len(PROMPTS) for part in parts)
    assert parts[0].answers | parts[1].answers == whole.answers
    values = parts[0].values + parts[1].values
    torch.testing.assert_close(values, whole.values, atol=1e-5, rtol=1e-5)
