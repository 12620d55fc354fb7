"""Edits of several fits, as the edits of one run: other tasks, folds and arms."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from sadi_lmeval.edits.contract import Edits, RowRule


def joined(several: Sequence[Edits]) -> Edits:
    """Put edits of one site and scope one after the other.

    Args:
        several: at least one; all of one site, one scope, and clean or not.

    Raises:
        ValueError: they are not alike in that.
    """
    return several[0] if len(several) == 1 else _Joined(several)


class _Joined(Edits):
    def __init__(self, several: Sequence[Edits]) -> None:
        first = several[0]
        if len({each.alike for each in several}) > 1:
            raise ValueError("edits of several sites, scopes or readings cannot be joined")
        self.site, self.scope, self.clean = first.site, first.scope, first.clean
        self._parts = list(several)
        self._starts = list(accumulate((part.count for part in several), initial=0))[:-1]
        self.count = sum(part.count for part in several)
        self.first_layers = [layer for part in several for layer in part.first_layers]
        self.layers = sorted({layer for part in several for layer in part.layers})
        self.gated = any(part.gated for part in several)
        self.means = tuple(dict.fromkeys(layer for part in several for layer in part.means))

    def digest(self, edit: int) -> str:
        part = bisect_right(self._starts, edit) - 1
        return self._parts[part].digest(edit - self._starts[part])

    def apply(self, layer: int, activations: Tensor, which: Tensor) -> Tensor:
        return self.placed(which)(layer, activations)

    def placed(self, which: Tensor) -> RowRule:
        parts: list[tuple[set[int], Tensor, RowRule]] = []  # layers, rows, the rule of these
        for part, start in zip(self._parts, self._starts, strict=True):
            rows = ((which >= start) & (which < start + part.count)).nonzero().flatten()
            if len(rows):
                parts.append((set(part.layers), rows, part.placed(which[rows] - start)))
        there: dict[tuple[int, torch.device], Tensor] = {}

        def rule(layer: int, activations: Tensor) -> Tensor:
            after = activations
            for number, (layers, rows, mine) in enumerate(parts):
                if layer not in layers:
                    continue
                if len(rows) == len(which):
                    return mine(layer, activations)
                key = number, activations.device
                if key not in there:
                    there[key] = rows.to(activations.device)
                changed = mine(layer, activations[there[key]])
                after = after.index_copy(0, there[key], changed)
            return after

        return rule

    def _read_by(self, part: Edits) -> slice | list[int]:
        """Say what of all that is read is for the gates of a part."""
        layers = self.site.layers
        if not part.means:
            return slice(layers)
        return [*range(layers), *(layers + self.means.index(layer) for layer in part.means)]

    def gates(self, unsteered: Tensor) -> Tensor | None:
        if not self.gated:
            return None
        ones = torch.ones(len(unsteered), 1)
        tables = [(part, part.gates(unsteered[:, self._read_by(part)])) for part in self._parts]
        return torch.cat(
            [ones.expand(-1, p.count) if t is None else t.cpu() for p, t in tables], dim=1
        )
