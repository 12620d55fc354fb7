"""Texts that a model generates of left-padded prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.passes.decoding import Decoder
from sadi_lmeval.passes.endings import Text
from sadi_lmeval.passes.engine import Engine
from sadi_lmeval.passes.prefill import steered_generation

PROMPTS = [[5, 9, 7, 4, 8, 33, 21], [11], [5, 9, 7]]
STEPS = 4


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
        with steered_generation(model, edits, which, ids, mask):
            found = run()
    return found.sequences[:, ids.shape[1] :], torch.stack(found.logits)


def planned_texts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note down how many texts each decoder is made for from now on."""
    planned: list[int] = []
    make = Engine.decoder

    def noted(engine: Engine, given: list[Text], *more: Any) -> Decoder:
        planned.append(len(given))
        return make(engine, given, *more)

    monkeypatch.setattr(Engine, "decoder", noted)
    return planned
