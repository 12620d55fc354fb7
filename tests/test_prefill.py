"""Steered generation against the oracle: the prompt's last token is edited, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from helpers.generation import PROMPTS, STEPS, generate, padded
from helpers.hooks import watching
from helpers.oracle import SITES, VARIANTS, Family, family, make_model
from sadi_lmeval.architecture.signature import cache_parameter
from sadi_lmeval.architecture.sites import find_site
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.edits.diagonal import DiagonalEdits, Edit
from sadi_lmeval.methods.sadi import Steering
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.prefill import (
    Prompts,
    beginning_of,
    can_share_beginning,
    steered_generation,
    with_shared_beginning,
)
from sadi_lmeval.types import Element, HiddenSite


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return make_model()


def assert_steered_as_the_oracle_says(
    model: LlamaForCausalLM, edits: Family, which: int, tokens: Tensor, logits: Tensor
) -> None:
    """Every step: an edit at a decoding step would show in the logits of that step."""
    for row, prompt in enumerate(PROMPTS):
        text = prompt + tokens[row].tolist()
        expected = edits.oracle(model, text, len(prompt) - 1, which)[len(prompt) - 1 : -1]
        torch.testing.assert_close(logits[:, row].double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("element", "hidden_site", "clean", "steering"), VARIANTS)
def test_generation_equals_the_equations_written_out(
    model: LlamaForCausalLM,
    element: Element,
    hidden_site: HiddenSite,
    clean: bool,
    steering: Steering,
) -> None:
    edits = family(model, element, hidden_site, clean, steering)
    for which in (0, 2):
        tokens, logits = generate(model, edits.edits, which)
        assert_steered_as_the_oracle_says(model, edits, which, tokens, logits)


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize(
    "options", [{"use_cache": False}, {"prefill_chunk_size": 3}, {"cache_implementation": "static"}]
)
def test_the_way_the_prompt_is_processed_does_not_matter(
    model: LlamaForCausalLM, clean: bool, options: dict[str, Any]
) -> None:
    edits = family(model, "head", "mlp", clean)
    tokens, logits = generate(model, edits.edits, **options)
    assert_steered_as_the_oracle_says(model, edits, 0, tokens, logits)


@pytest.mark.parametrize("clean", [False, True])
def test_an_edit_of_delta_zero_changes_no_logit_bit_of_a_generation(
    model: LlamaForCausalLM, clean: bool
) -> None:
    site = find_site(model, "head")
    nothing = DiagonalEdits(site, [Edit(torch.zeros(site.layers, site.width))], clean)
    tokens, logits = generate(model, nothing)
    plain_tokens, plain_logits = generate(model, None)
    assert torch.equal(tokens, plain_tokens)
    assert torch.equal(logits, plain_logits)


def test_a_delta_changes_the_logits_of_the_first_generated_token(model: LlamaForCausalLM) -> None:
    for element, hidden_site in SITES:
        for clean in (False, True):
            steered = generate(model, family(model, element, hidden_site, clean).edits)[1]
            gap = (steered[0] - generate(model, None)[1][0]).abs().amax(dim=-1)
            assert (gap > 1e-2).all(), (element, hidden_site, clean)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(("element", "hidden_site"), SITES)
def test_only_masked_entries_of_the_last_prompt_token_are_touched(
    model: LlamaForCausalLM, element: Element, hidden_site: HiddenSite, use_cache: bool
) -> None:
    """In the first layer, fed with the same tokens steered and unsteered: bit for bit."""
    site = find_site(model, element, hidden_site)
    gain = torch.zeros(site.layers, site.width)
    gain[0, [1, 5]] = 3.0
    edits = DiagonalEdits(site, [Edit(gain)], clean=False)
    ids, mask = padded(PROMPTS)
    forced = torch.tensor([[3, 14], [15, 9], [26, 5]])
    full = torch.cat([mask, torch.ones_like(forced)], dim=-1)

    def prefill_and_two_steps() -> None:
        cache = DynamicCache() if use_cache else None
        for step in range(3):
            seen = torch.cat([ids, forced[:, :step]], dim=-1)
            with torch.no_grad():
                model(
                    input_ids=seen[:, -1:] if use_cache and step else seen,
                    attention_mask=full[:, : seen.shape[1]],
                    **{cache_parameter(model): cache},
                    use_cache=use_cache,
                )

    with watching(model, site) as passes:
        prefill_and_two_steps()
        with steered_generation(model, edits, 0, ids, mask):
            prefill_and_two_steps()
    assert len(passes) == 6
    last = ids.shape[1] - 1
    for step, (plain, steered) in enumerate(zip(passes[:3], passes[3:], strict=True)):
        before, after = plain.layers[0], steered.layers[0]
        touched = {tuple(place) for place in (before != after).nonzero().tolist()}
        if step and use_cache:
            assert not touched
        else:
            assert touched == {(row, last, entry) for row in range(3) for entry in (1, 5)}
            expected = before[:, last, [1, 5]] * 4
            torch.testing.assert_close(after[:, last, [1, 5]], expected)


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("beams", [1, 2])
def test_several_sequences_of_a_prompt_are_each_steered_as_its_one_would_be(
    model: LlamaForCausalLM, clean: bool, beams: int
) -> None:
    edits = family(model, "head", "mlp", clean).edits
    alone = generate(model, edits)[1][0]
    options: dict[str, Any] = {
        "num_return_sequences": 2,
        "num_beams": beams,
        "do_sample": beams == 1,
    }
    together = generate(model, edits, **options)[1][0]
    expected = alone.repeat_interleave(2, dim=0)
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-4)


def test_prompts_in_a_batch_are_steered_as_alone(model: LlamaForCausalLM) -> None:
    for clean in (False, True):
        edits = family(model, "neuron", "mlp", clean).edits
        together = generate(model, edits)[1][0]
        alone = [generate(model, edits, prompts=[prompt])[1][0, 0] for prompt in PROMPTS]
        torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-4)


def test_the_generation_after_a_steered_one_is_unsteered(model: LlamaForCausalLM) -> None:
    before = generate(model, None)[1]
    generate(model, family(model, "head", "mlp", True).edits)
    assert torch.equal(before, generate(model, None)[1])


# ------------------------------------------------------------------ a shared beginning

BEGINNING = [(7 * i + 3) % 60 for i in range(9)]
ALIKE = [[*BEGINNING, *end] for end in ([5], [9, 7, 4, 8], [11, 12], [44, 5, 6, 2, 2])]


def generate_after_a_beginning(
    model: LlamaForCausalLM, edits: Edits, which: int, beginning: list[int]
) -> tuple[Tensor, Tensor, int]:
    """As :func:`generate`, and the tokens that were computed."""
    ids, mask = padded(ALIKE)
    computed: list[int] = []
    handle = model.model.embed_tokens.register_forward_hook(
        lambda m, given, out: computed.append(out[..., 0].numel())
    )
    prompts = with_shared_beginning(Forward(model), Prompts(ids, mask), beginning)
    with steered_generation(model, edits, which, ids, mask):
        found = model.generate(
            prompts.input_ids,
            attention_mask=prompts.attention_mask,
            **{cache_parameter(model): prompts.cache},
            pad_token_id=2,
            return_dict_in_generate=True,
            output_logits=True,
            do_sample=False,
            min_new_tokens=STEPS,
            max_new_tokens=STEPS,
        )
    handle.remove()
    return found.sequences[:, ids.shape[1] :], torch.stack(found.logits), sum(computed)


@pytest.mark.parametrize(("element", "hidden_site"), SITES)
@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("length", [1, 4, len(BEGINNING)])
def test_a_shared_beginning_is_computed_once_and_changes_no_generation(
    model: LlamaForCausalLM,
    element: Element,
    hidden_site: HiddenSite,
    clean: bool,
    length: int,
) -> None:
    edits = family(model, element, hidden_site, clean)
    found = generate_after_a_beginning(model, edits.edits, 0, BEGINNING[:length])
    tokens, logits, computed = found
    for row, prompt in enumerate(ALIKE):
        text = prompt + tokens[row].tolist()
        expected = edits.oracle(model, text, len(prompt) - 1, 0)[len(prompt) - 1 : -1]
        torch.testing.assert_close(logits[:, row].double(), expected, atol=1e-4, rtol=1e-4)
    width, rows = max(map(len, ALIKE)), len(ALIKE)
    unsteered_pass = rows * width if clean else 0
    steps = rows * (STEPS - 1)
    assert computed == length + rows * (width - length) + steps + unsteered_pass


def test_prompts_one_of_which_does_not_begin_so_are_left_as_they_came(
    model: LlamaForCausalLM,
) -> None:
    ids, mask = padded(ALIKE)
    for beginning in ([*BEGINNING[:-1], 58], [*BEGINNING, 5]):
        prompts = Prompts(ids, mask)
        assert with_shared_beginning(Forward(model), prompts, beginning) is prompts


def test_a_prompt_of_which_nothing_would_be_left_is_left_as_it_came(
    model: LlamaForCausalLM,
) -> None:
    prompts = Prompts(*padded([*ALIKE, BEGINNING]))
    assert with_shared_beginning(Forward(model), prompts, BEGINNING) is prompts
    assert with_shared_beginning(Forward(model), prompts, BEGINNING[:-1]) is not prompts


def test_prompts_are_copied_where_their_beginning_moves(model: LlamaForCausalLM) -> None:
    ids, mask = padded(ALIKE)
    before = ids.clone(), mask.clone()
    found = with_shared_beginning(Forward(model), Prompts(ids, mask), BEGINNING)
    assert torch.equal(ids, before[0])
    assert torch.equal(mask, before[1])
    assert found.input_ids.shape == ids.shape
    assert found.cache is not None
    assert found.cache.get_seq_length() == len(BEGINNING)
    for row, prompt in enumerate(ALIKE):
        kept = found.input_ids[row][found.attention_mask[row].bool()]
        assert kept.tolist() == prompt
        assert found.input_ids[row, : len(BEGINNING)].tolist() == BEGINNING


def test_what_enough_prompts_begin_with_for_long_enough_is_worth_sharing() -> None:
    long = list(range(40))
    ends = [[50], [51, 50], [52], [53]]
    assert beginning_of([long + end for end in ends]) == long
    assert beginning_of([long] * 4) == long[:-1]
    assert beginning_of([[*long, 50], [*long, 50, 51], [*long, 52], long]) == long[:-1]
    assert beginning_of([long + end for end in ends[:3]]) == []
    assert beginning_of([long[:20] + end for end in ends]) == []
    assert beginning_of([[50, *long], *(long + end for end in ends)]) == []
    assert beginning_of([]) == []


def test_a_model_whose_generation_takes_a_shared_beginning_is_left_as_it_was(
    model: LlamaForCausalLM,
) -> None:
    before = generate(model, None)[1]
    assert can_share_beginning(model)
    assert torch.equal(before, generate(model, None)[1])
