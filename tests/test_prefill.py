"""Steered generation against the oracle: the prompt's last token is edited, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_interventions import VARIANTS, Family, family, make_model
from torch import Tensor
from transformers import LlamaForCausalLM

from sadi_lmeval.interventions.edit import Edits
from sadi_lmeval.options import Element, HiddenSite, Steering
from sadi_lmeval.prefill import steered_prefill

PROMPTS = [[5, 9, 7, 4, 8, 33, 21], [11], [5, 9, 7]]
STEPS = 4


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return make_model()


def padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Left-padded ids and their attention mask, ``[batch, seq]``."""
    width = max(map(len, prompts))
    ids = torch.tensor([[2] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def generate(
    model: LlamaForCausalLM,
    edits: Edits | None,
    which: int = 0,
    prompts: list[list[int]] = PROMPTS,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Generated tokens ``[rows, steps]`` and the logits of each step ``[steps, rows, vocab]``."""
    ids, mask = padded(prompts)
    settings = {"do_sample": False, "min_new_tokens": STEPS, "max_new_tokens": STEPS, **options}

    def run() -> Any:
        return model.generate(
            ids,
            attention_mask=mask,
            pad_token_id=2,
            return_dict_in_generate=True,
            output_logits=True,
            **settings,
        )

    if edits is None:
        found = run()
    else:
        with steered_prefill(model, edits, which, ids, mask):
            found = run()
    return found.sequences[:, ids.shape[1] :], torch.stack(found.logits)


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
