"""Diagonal edits of whole layers: one vector a layer, one number an edit (CAA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.edits.gated import Gate
from sadi_lmeval.edits.numbered import NumberedEdits
from sadi_lmeval.types import Scope


class ScaledEdits(NumberedEdits):
    """A' = A + s · (gain_l ⊙ A + shift_l), with a strength s of each edit."""

    def __init__(
        self,
        site: Site,
        strengths: Sequence[float],
        layers: Sequence[Sequence[int]],
        scope: Scope,
        *,
        shift: Mapping[int, Tensor],
        gain: Mapping[int, Tensor] | None = None,
        gate: Gate | None = None,
        gate_digests: Sequence[str] = (),
    ) -> None:
        """
        Args:
            strengths: s of each edit; 0 edits nothing.
            layers: that each edit edits.
            shift, gain: of each layer, ``[width]`` float32; no gain is zero.
            gate, gate_digests: see :class:`~sadi_lmeval.edits.gated.GatedEdits`.
        """
        tensors = {layer: {"shift": values} for layer, values in shift.items()}
        for layer, values in (gain or {}).items():
            tensors.setdefault(layer, {})["gain"] = values
        # A zero vector edits nothing, and so does a strength of 0.
        tensors = {n: t for n, t in tensors.items() if any(bool(v.any()) for v in t.values())}
        mine = [
            [n for n in of if n in tensors] if strength else []
            for strength, of in zip(strengths, layers, strict=True)
        ]
        numbers = [[strength] for strength in strengths]
        super().__init__(site, ScaledEdits, tensors, numbers, mine, scope, gate, gate_digests)

    def change(self, tensors: Mapping[str, Tensor], rows: Tensor, numbers: Tensor) -> Tensor:
        if "gain" not in tensors:
            return rows + (numbers * tensors["shift"]).to(rows.dtype)
        # A gain and a shift that nearly undo each other would leave little but rounding in 16 bits.
        a, gain = rows.float(), tensors["gain"]
        shift = tensors.get("shift", torch.zeros_like(gain))
        after = a + numbers * (gain * a + shift)
        # What is not changed keeps its bits: a zero's sign, and not 0 times infinity.
        return torch.where((gain == 0) & (shift == 0), rows, after.to(rows.dtype))

    def shift(self, edit: int) -> dict[int, Tensor] | None:
        mine = [layer for layer in self.layers if self.edits_layer(edit, layer)]
        tensors = {layer: self.tensors_of(layer) for layer in mine}
        if self.gated or any("gain" in each for each in tensors.values()):
            return None
        strength = float(self.numbers[edit, 0])
        return {layer: strength * each["shift"] for layer, each in tensors.items()}
