"""Edits that read a few projections and the norm, and write along a few directions.

Rotation, ablation, clamping and projection on a half-space are of this kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.edits.gated import Gate
from sadi_lmeval.edits.numbered import NumberedEdits
from sadi_lmeval.types import Scope

Rule = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes projections S ``[n, r]``, norms |A| ``[n]`` and the numbers of each row's edit ``[n, m]``,
all float32; gives a scale ``[n]`` and coefficients C ``[n, q]``. A scale of 1 with coefficients of
0 leaves a row as it is, bit for bit."""


class DirectionEdits(NumberedEdits):
    """A' = scale · A + C V, where (scale, C) = rule(A Uᵀ + c, |A|, numbers), in float32."""

    def __init__(
        self,
        site: Site,
        rule: Rule,
        numbers: Sequence[Sequence[float]],
        layers: Sequence[Sequence[int]],
        scope: Scope,
        *,
        read: Mapping[int, Tensor],
        write: Mapping[int, Tensor] | None = None,
        offset: Mapping[int, Tensor] | None = None,
        gate: Gate | None = None,
        gate_digests: Sequence[str] = (),
    ) -> None:
        """
        Args:
            rule: see :data:`Rule`; a function of a module.
            numbers: of each edit.
            layers: that each edit edits.
            read: U of each layer, ``[r, width]`` float32.
            write: V of each layer, ``[q, width]`` float32; None: U.
            offset: c of each layer, ``[r]`` float32; None: zero.
            gate, gate_digests: see :class:`~sadi_lmeval.edits.gated.GatedEdits`.
        """
        tensors = {layer: {"read": values} for layer, values in read.items()}
        for name, given in (("write", write), ("offset", offset)):
            for layer, values in (given or {}).items():
                tensors[layer][name] = values
        super().__init__(site, rule, tensors, numbers, layers, scope, gate, gate_digests)

    def change(self, tensors: Mapping[str, Tensor], rows: Tensor, numbers: Tensor) -> Tensor:
        a = rows.float()
        # One sum a row and direction: a matrix product rounds by how many rows there are.
        projections = torch.stack([(a * u).sum(dim=-1) for u in tensors["read"]], dim=-1)
        if "offset" in tensors:
            projections = projections + tensors["offset"]
        scale, coefficients = self.rule(projections, a.norm(dim=-1), numbers)
        after = scale.unsqueeze(-1) * a
        for v, along in zip(
            tensors.get("write", tensors["read"]), coefficients.unbind(dim=-1), strict=True
        ):
            after = after + along.unsqueeze(-1) * v
        same = (scale == 1) & (coefficients == 0).all(dim=-1)
        return torch.where(same.unsqueeze(-1), rows, after.to(rows.dtype))
