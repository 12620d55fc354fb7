"""Diagonal edits: each activation is scaled and shifted by itself (SADI, ITI)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.edits.contract import RowRule
from sadi_lmeval.edits.gated import Gate, GatedEdits
from sadi_lmeval.types import Scope


@dataclass(frozen=True)
class Edit:
    """A' = A + gain ⊙ A + shift, at a site.

    Attributes:
        gain: ``[layers, width]`` float32, on the CPU.
        shift: ``[layers, width]`` float32, on the CPU, or None for zero.
    """

    gain: Tensor
    shift: Tensor | None = None


class DiagonalEdits(GatedEdits):
    """Edits of a few entries each.

    Only the entries that some edit touches are kept: a grid of hundreds of settings stays small.
    Of edits of whole layers see :class:`sadi_lmeval.edits.scaled.ScaledEdits`.
    """

    def __init__(
        self,
        site: Site,
        edits: Iterable[Edit],
        clean: bool = False,
        scope: Scope = "prompt",
        *,
        gate: Gate | None = None,
        gate_digests: Sequence[str] = (),
    ) -> None:
        """
        Args:
            edits: one after the other; their tensors are not kept.
            gate, gate_digests: see :class:`~sadi_lmeval.edits.gated.GatedEdits`.
        """
        touched = [_touched(edit) for edit in edits]
        super().__init__(len(touched), gate, gate_digests)
        self.site = site
        self.clean = clean
        self.scope = scope
        self.first_layers = [
            int(where[:, 0].min()) if len(where) else site.layers for where, _ in touched
        ]
        every = torch.cat([where for where, _ in touched]) if touched else torch.zeros(0, 2).long()
        self.layers: list[int] = torch.unique(every[:, 0]).tolist()
        self._entries: dict[int, Tensor] = {}  # layer -> [n] touched entries
        self._change: dict[int, Tensor] = {}  # layer -> [edits, 2, n] gain and shift of them
        for layer in self.layers:
            entries = torch.unique(every[every[:, 0] == layer, 1])
            change = torch.zeros(len(touched), 2, len(entries))
            for edit, (where, values) in enumerate(touched):
                here = where[:, 0] == layer
                change[edit, :, torch.searchsorted(entries, where[here, 1])] = values[:, here]
            self._entries[layer], self._change[layer] = entries, change

    def digest(self, edit: int) -> str:
        content = hashlib.sha256(
            f"{self.site.name} {self.clean} {self.scope} {self.gate_digest(edit)}".encode()
        )
        for layer in self.layers:
            change = self._change[layer][edit]
            touched = change.any(dim=0)
            if not touched.any():
                continue
            for part in (self._entries[layer][touched], change[:, touched]):
                content.update(f"{layer} ".encode() + part.contiguous().numpy().tobytes())
        return content.hexdigest()

    def apply(self, layer: int, activations: Tensor, which: Tensor) -> Tensor:
        return self.placed(which)(layer, activations)

    def placed(self, which: Tensor) -> RowRule:
        there: dict[tuple[int, torch.device, torch.dtype], tuple[Tensor, ...]] = {}

        def rule(layer: int, activations: Tensor) -> Tensor:
            if layer not in self._entries:
                return activations
            key = layer, activations.device, activations.dtype
            if key not in there:
                gain, shift = self._change[layer][which].to(activations).unbind(dim=1)
                entries = self._entries[layer].to(activations.device)
                there[key] = entries, gain, shift, (gain == 0) & (shift == 0)
            entries, gain, shift, same = there[key]
            before = activations[:, entries]
            after = before + gain * before + shift
            # What other edits change is to keep its bits: a zero's sign, and not 0 times infinity.
            return activations.index_copy(1, entries, torch.where(same, before, after))

        return rule

    def shift(self, edit: int) -> dict[int, Tensor] | None:
        added = {}
        for layer in self.layers:
            gain, shift = self._change[layer][edit]
            if gain.any() or self.clean or self.gated:
                return None
            if shift.any():
                whole = torch.zeros(self.site.width)
                added[layer] = whole.index_copy(0, self._entries[layer], shift)
        return added


def _touched(edit: Edit) -> tuple[Tensor, Tensor]:
    """Give (layer, entry) of what an edit touches, ``[n, 2]``, its gain and shift, ``[2, n]``."""
    shift = torch.zeros_like(edit.gain) if edit.shift is None else edit.shift
    where = ((edit.gain != 0) | (shift != 0)).nonzero()
    rows, entries = where.unbind(dim=1)
    return where, torch.stack([edit.gain[rows, entries], shift[rows, entries]])
