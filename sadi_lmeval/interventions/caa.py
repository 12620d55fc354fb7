"""CAA: add the mean difference of the residual stream in one layer (Rimsky et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from sadi_lmeval.interventions.edit import Edit


def caa_edit(difference: Tensor, layer: int, multiplier: float) -> Edit:
    """h' = h + multiplier · v, v the mean difference after decoder block ``layer`` (section 3).

    Args:
        difference: mean(positive) − mean(negative) of every block's output at the last token of
            the answer, ``[layers, hidden]``.
        layer: the block, counted from 0.
        multiplier: how strongly; a negative one steers towards the negative answers.
    """
    shift = torch.zeros_like(difference)
    shift[layer] = multiplier * difference[layer]
    return Edit(gain=torch.zeros_like(difference), shift=shift)
