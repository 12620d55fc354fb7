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
        return self.unflat(activations)[rows, positions]

    def write(self, activations: Tensor, values: Tensor) -> Tensor:
        """Copy the activations, with ``values`` ``[n, width]`` at these positions."""
        where = self._on(activations.device)
        new = self.unflat(activations).index_put(where, values.to(activations.dtype))
        return new.view_as(activations)

    def unflat(self, activations: Tensor) -> Tensor:
        """Give ``[batch, seq, width]``, also of that flattened."""
        if activations.dim() == 2:
            return activations.view(self.batch, -1, activations.shape[-1])
        return activations

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return self.rows.to(device), self.positions.to(device)


class Paths(NamedTuple):
    """All tokens of the texts that end at n points of a batch.

    Attributes:
        points: where they end.
        seen: which tokens of its row each text has, ``[n, seq]`` bool.
    """

    points: Points
    seen: Tensor

    def mean(self, activations: Tensor, before: Tensor | None) -> Tensor:
        """Average over the tokens of each text, ``[n, width]``, at least float32.

        Each text reads its own tokens alone, so that one that is not finite stays its own matter.

        Args:
            activations: ``[batch, seq, width]``, or that flattened.
            before: of the tokens that stand before every row, ``[length, width]``; None: none do.
        """
        rows, seen = self.points.rows.tolist(), self.seen.to(activations.device)
        wide = torch.promote_types(activations.dtype, torch.float32)
        values = self.points.unflat(activations)
        total = values.new_zeros((len(rows), values.shape[-1]), dtype=wide)
        count = seen.sum(dim=1, keepdim=True)
        for text, (row, own) in enumerate(zip(rows, seen, strict=True)):
            total[text] = values[row, own].to(wide).sum(dim=0)
        if before is not None:
            total += before.to(total).sum(dim=0)
            count = count + len(before)
        return total / count
