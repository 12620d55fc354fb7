"""Edits by any function of the row: a vector field that is followed, a network, a mixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.edits.gated import Gate
from sadi_lmeval.edits.numbered import NumberedEdits
from sadi_lmeval.types import Scope

Rule = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]
"""Takes a layer's tensors by name, A ``[n, width]`` float32 and the numbers of each row's edit
``[n, m]`` float32; gives A' ``[n, width]``, each row from its own row alone."""


class FieldEdits(NumberedEdits):
    """A' = rule(tensors of the layer, A, numbers of the edit), in float32."""

    def __init__(
        self,
        site: Site,
        rule: Rule,
        numbers: Sequence[Sequence[float]],
        layers: Sequence[Sequence[int]],
        scope: Scope,
        *,
        tensors: Mapping[int, Mapping[str, Tensor]],
        gate: Gate | None = None,
        gate_digests: Sequence[str] = (),
    ) -> None:
        """
        Args:
            rule: see :data:`Rule`; a function of a module.
            numbers: of each edit.
            layers: that each edit edits.
            tensors: of each layer, by name.
            gate, gate_digests: see :class:`~sadi_lmeval.edits.gated.GatedEdits`.
        """
        super().__init__(site, rule, tensors, numbers, layers, scope, gate, gate_digests)

    def change(self, tensors: Mapping[str, Tensor], rows: Tensor, numbers: Tensor) -> Tensor:
        after: Tensor = self.rule(tensors, rows.float(), numbers)
        return after
