"""Requests under all settings at once, and one by one."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from helpers.layouts import (
    FEW_TOKENS,
    ONE_BATCH,
)
from sadi_lmeval.edits.contract import Edits
from sadi_lmeval.passes.batches import Bounds
from sadi_lmeval.passes.forward import Forward
from sadi_lmeval.passes.grid import grid_log_likelihoods
from sadi_lmeval.passes.packing import Continuation
from sadi_lmeval.passes.scoring import log_likelihoods


def score(
    model: LlamaForCausalLM,
    requests: list[Continuation],
    families: list[Edits],
    bounds: Bounds = FEW_TOKENS,
    branching: bool = True,
    resuming: bool = True,
    softmax_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-likelihoods and greediness ``[settings, requests]``, each told exactly once."""
    count = 1 + sum(family.count for family in families)
    values = torch.full((count, len(requests)), torch.nan, dtype=softmax_dtype or torch.float32)
    greedy = torch.zeros(count, len(requests), dtype=torch.bool)
    told: list[int] = []

    def done(which: list[int], some: Tensor, some_greedy: Tensor) -> None:
        assert some.shape == some_greedy.shape == (count, len(which))
        assert some_greedy.dtype == torch.bool
        told.extend(which)
        values[:, which], greedy[:, which] = some.to(values.dtype), some_greedy

    grid_log_likelihoods(
        Forward(model), requests, families, 2, branching, resuming, bounds, softmax_dtype, done
    )
    assert Counter(told) == Counter(range(len(requests)))
    return values, greedy


def one_by_one(
    model: LlamaForCausalLM, requests: list[Continuation], families: list[Edits]
) -> tuple[Tensor, Tensor]:
    """The same from a plain pass of every request under every setting."""
    every: list[tuple[Edits | None, int]] = [(None, 0)]
    every += [(family, edit) for family in families for edit in range(family.count)]
    scores = [
        log_likelihoods(
            Forward(model), [r._replace(edit=edit) for r in requests], family, 2, False, ONE_BATCH
        )
        for family, edit in every
    ]
    found = torch.tensor(scores, dtype=torch.float64)
    return found[..., 0].float(), found[..., 1].bool()


def assert_same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-5)
    assert torch.equal(found[1], expected[1])
