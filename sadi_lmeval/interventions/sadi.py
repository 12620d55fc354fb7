"""SADI: scale the input's own activations at the critical elements (Wang et al., ICLR 2025)."""

from __future__ import annotations

import torch
from torch import Tensor

from sadi_lmeval.interventions.edit import Edit
from sadi_lmeval.options import Selection, Steering


def entry_scores(difference: Tensor) -> Tensor:
    """One number an entry, ``[layers, entries]``: for heads D's mean over ``head_dim``."""
    return difference.mean(dim=-1)


def binary_mask(scores: Tensor, top_k: int, selection: Selection, seed: int) -> Tensor:
    """M: K ones over all layers together (section 3.2, equation 4).

    Args:
        scores: D's score of every entry, ``[layers, entries]``.
        top_k: K.
        selection: the K largest signed scores (as the reference code), the K largest absolute
            ones, the K smallest, or K at random (the ablation of table 4).
        seed: of the random selection.

    Returns:
        ``[layers, entries]`` bool. Of equal scores the earlier layer and entry wins.
    """
    flat = scores.flatten().double()
    if selection == "random":
        order = torch.randperm(flat.numel(), generator=torch.Generator().manual_seed(seed))
    else:
        key = {"top": flat, "top_abs": flat.abs(), "bottom": -flat}[selection]
        order = key.argsort(descending=True, stable=True)
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[order[:top_k]] = True
    return mask.view_as(scores)


def sadi_edit(mask: Tensor, difference: Tensor, delta: float, steering: Steering) -> Edit:
    """A' = A + δ (A ⊙ M) (equation 5); for the fixed ablation A' = A + δ (D ⊙ M).

    Args:
        mask: M, ``[layers, entries]`` bool.
        difference: D, ``[layers, entries, entry_width]``.
        delta: δ; the reference code's strength is 1 + δ.
        steering: ``dynamic`` scales the input's own activations, ``fixed`` adds D (table 4).
    """
    m = mask.unsqueeze(-1).expand_as(difference).flatten(1).float()
    if steering == "fixed":
        return Edit(gain=torch.zeros_like(m), shift=delta * difference.flatten(1).float() * m)
    return Edit(gain=delta * m)
