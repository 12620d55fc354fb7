"""Positions in a batch: where activations are read, edited, or turned into logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Points(NamedTuple):
    """n positions in a batch of sequences.

    Attributes:
        rows: which sequence, ``[n]`` int64.
        positions: which token of it, ``[n]`` int64.
        batch: how many sequences the batch has.
    """

    rows: Tensor
    positions: Tensor
    batch: int

    @classmethod
    def of(cls, pairs: list[tuple[int, int]], batch: int, device: torch.device) -> Points:
        table = torch.tensor(pairs, dtype=torch.long, device=device).reshape(-1, 2)
        return cls(table[:, 0], table[:, 1], batch)

    def read(self, activations: Tensor) -> Tensor:
        """Take ``[n, width]`` out of ``[batch, seq, width]``, or out of that flattened."""
        rows, positions = self._on(activations.device)
        return self._unflat(activations)[rows, positions]

    def write(self, activations: Tensor, values: Tensor) -> Tensor:
        """Copy the activations, with ``values`` ``[n, width]`` at these positions."""
        where = self._on(activations.device)
        new = self._unflat(activations).index_put(where, values.to(activations.dtype))
        return new.view_as(activations)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.rows.to(device), self.positions.to(device)

    def _unflat(self, activations: Tensor) -> Tensor:
        if activations.dim() == 2:
            return activations.view(self.batch, -1, activations.shape[-1])
        return activations
