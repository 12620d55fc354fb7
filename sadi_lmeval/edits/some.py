"""Some edits of a family: those of the settings that are still tried."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from sadi_lmeval.edits.contract import Edits, RowRule


def some(edits: Edits, which: Sequence[int]) -> Edits:
    """Take some edits of a family, in an order; nothing of the family is copied.

    Args:
        which: their indices.
    """
    return edits if list(which) == list(range(edits.count)) else _Some(edits, which)


class _Some(Edits):
    def __init__(self, edits: Edits, which: Sequence[int]) -> None:
        self._edits, self._which = edits, torch.tensor(list(which), dtype=torch.long)
        self.site, self.scope, self.clean = edits.site, edits.scope, edits.clean
        self.count, self.gated, self.means = len(which), edits.gated, edits.means
        self.first_layers = [edits.first_layers[edit] for edit in which]
        lowest = min(self.first_layers, default=0)
        self.layers = [layer for layer in edits.layers if layer >= lowest]

    @property
    def alike(self) -> tuple[Hashable, ...]:
        return self._edits.alike

    def digest(self, edit: int) -> str:
        return self._edits.digest(int(self._which[edit]))

    def apply(self, layer: int, activations: Tensor, which: Tensor) -> Tensor:
        return self._edits.apply(layer, activations, self._which[which])

    def placed(self, which: Tensor) -> RowRule:
        return self._edits.placed(self._which[which])

    def gates(self, unsteered: Tensor) -> Tensor | None:
        table = self._edits.gates(unsteered)
        return None if table is None else table[:, self._which.to(table.device)]

    def shift(self, edit: int) -> dict[int, Tensor] | None:
        return self._edits.shift(int(self._which[edit]))
