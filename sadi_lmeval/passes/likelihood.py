"""Log-probabilities of tokens, read off logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_AT_ONCE = 1 << 20
"""Logits whose softmax is taken at once: what fits into a processor's cache is fastest."""
_AT_ONCE_ELSEWHERE = 1 << 27


class Likelihood(NamedTuple):
    """Of m tokens: log-probability ``[m]``, and whether each is the most probable, ``[m]``."""

    log_probability: Tensor
    greedy: Tensor


def likelihood(
    logits: Tensor, points: Tensor, tokens: Tensor, softmax_dtype: torch.dtype | None
) -> Likelihood:
    """Read off what ``logits[points[i]]`` say of ``tokens[i]``.

    The softmax of all logits is never held at once.

    Args:
        logits: ``[n, vocab]``.
        points: ``[m]``, ascending.
        tokens: ``[m]``.
        softmax_dtype: of the log-softmax; None: that of the logits.

    Returns:
        on the CPU.
    """
    at_once = _AT_ONCE if logits.device.type == "cpu" else _AT_ONCE_ELSEWHERE
    step = max(1, at_once // logits.shape[-1])
    starts = torch.arange(0, len(logits) + step, step)
    bounds = torch.searchsorted(points, starts).tolist()
    log_probability: list[Tensor] = []
    greedy: list[Tensor] = []
    for start, first, last in zip(starts.tolist(), bounds, bounds[1:], strict=False):
        part = logits[start : start + step]
        rows = (points[first:last] - start).to(logits.device)
        target = tokens[first:last].to(logits.device)
        log_probability.append(part.log_softmax(dim=-1, dtype=softmax_dtype)[rows, target])
        greedy.append(part.argmax(dim=-1)[rows] == target)
    return Likelihood(torch.cat(log_probability).cpu(), torch.cat(greedy).cpu())
