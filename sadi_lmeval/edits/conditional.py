"""Edits for some prompts alone: those that meet a condition.

The condition is that of CAST (Lee et al., ICLR 2025, arXiv 2409.05907, section 3.3), read at the
site of the edits, in an unsteered pass, of the last prompt token or of the mean over the prompt's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from sadi_lmeval.edits.contract import Edits, RowRule
from sadi_lmeval.types import Side, Token
from sadi_lmeval.versions import code_digest


@dataclass(frozen=True)
class Condition:
    """Whether a prompt is steered: its similarity is above a threshold, or below it.

    Attributes:
        layer: of the site, where the similarity is read.
        direction: c, ``[width]`` float32.
        threshold: a similarity; a prompt that is exactly at it is steered on neither side.
        side: on which side of it a prompt is steered.
        token: what of a prompt is read there.
    """

    layer: int
    direction: Tensor
    threshold: float
    side: Side
    token: Token = "last"

    @property
    def digest(self) -> str:
        """The sha256 of all that decides on a prompt."""
        numbers = f"{self.layer} {self.threshold!r} {self.side} {self.token}"
        of_numbers = f"{code_digest(Condition)} {numbers} "
        content = hashlib.sha256(of_numbers.encode())
        content.update(self.direction.contiguous().numpy().tobytes())
        return content.hexdigest()

    def passes(self, activations: Tensor) -> Tensor:
        """Say which prompts are steered.

        Args:
            activations: of what is read of k prompts at the layer, ``[k, width]``.

        Returns:
            ``[k]`` bool; a prompt whose activations are not finite is not steered.
        """
        found = similarity(activations, self.direction)
        return found > self.threshold if self.side == "above" else found < self.threshold


def similarity(activations: Tensor, direction: Tensor) -> Tensor:
    """Compute s = cos(h, tanh(proj_c h)), the similarity of CAST; c and −c give the same.

    Args:
        activations: h, ``[k, width]``.
        direction: c, ``[width]``; of a zero vector s is 0.

    Returns:
        ``[k]`` float32. Each row is computed for itself, so that it does not show which prompts
        are read together.
    """
    h, c = activations.float(), direction.to(activations.device)
    squared = (c * c).sum()
    share = (h * c).sum(dim=-1, keepdim=True) / torch.where(squared > 0, squared, 1)
    return torch.cosine_similarity(h, torch.tanh(share * c), dim=-1)


class ConditionalEdits(Edits):
    """Edits whose gates are also 0 for prompts that do not meet a condition."""

    gated = True

    def __init__(self, edits: Edits, condition: Condition) -> None:
        """
        Args:
            edits: what is done to the prompts that meet it; their own gates count too.
            condition: at the same site.
        """
        self.edits, self.condition = edits, condition
        self.site, self.scope, self.clean = edits.site, edits.scope, edits.clean
        self.count, self.layers = edits.count, edits.layers
        self.first_layers = edits.first_layers
        self.means = (*edits.means, condition.layer) if condition.token == "mean" else edits.means

    @property
    def alike(self) -> tuple[Hashable, ...]:
        return self.edits.alike

    def apply(self, layer: int, activations: Tensor, which: Tensor) -> Tensor:
        return self.edits.apply(layer, activations, which)

    def placed(self, which: Tensor) -> RowRule:
        return self.edits.placed(which)

    def gates(self, unsteered: Tensor) -> Tensor:
        of_condition = unsteered[:, -1 if self.condition.token == "mean" else self.condition.layer]
        met = self.condition.passes(of_condition).float().cpu().unsqueeze(-1)
        own = self.edits.gates(unsteered[:, : self.site.layers + len(self.edits.means)])
        # Not by a product with what may be no number: a prompt that is left alone is left alone.
        return met.expand(-1, self.count) if own is None else torch.where(met == 0, met, own.cpu())

    def digest(self, edit: int) -> str:
        text = f"{self.edits.digest(edit)} {self.condition.digest}"
        return hashlib.sha256(text.encode()).hexdigest()
