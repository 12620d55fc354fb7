"""What edits of whole layers have in common: tensors kept once a layer, and numbers an edit."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.edits.contract import RowRule
from sadi_lmeval.edits.gated import Gate, GatedEdits
from sadi_lmeval.types import Scope
from sadi_lmeval.versions import code_digest


class NumberedEdits(GatedEdits):
    """Edits that share a layer's tensors and differ in a few numbers.

    The tensors of a layer are held once, however many edits there are: a grid of all layers costs
    as much memory as one setting.
    """

    def __init__(
        self,
        site: Site,
        rule: Any,
        tensors: Mapping[int, Mapping[str, Tensor]],
        numbers: Sequence[Sequence[float]],
        layers: Sequence[Sequence[int]],
        scope: Scope,
        gate: Gate | None = None,
        gate_digests: Sequence[str] = (),
    ) -> None:
        """
        Args:
            site: where activations are edited.
            rule: what computes the change: an object whose source tells rules apart.
            tensors: of each layer that is edited, by name, on the CPU.
            numbers: of each edit, as many for all, ``[count][m]``.
            layers: that each edit edits, ``[count]``.
            scope: which tokens are edited.
            gate, gate_digests: see :class:`~sadi_lmeval.edits.gated.GatedEdits`.
        """
        if getattr(rule, "__closure__", None):
            raise ValueError(
                f"rule {rule.__qualname__}: must be a function of a module that takes all "
                "from its arguments, or its digest would not tell what it does"
            )
        super().__init__(len(numbers), gate, gate_digests)
        self.site, self.rule, self.scope = site, rule, scope
        self.numbers = torch.zeros(self.count, 0, dtype=torch.float64)
        if self.count:
            self.numbers = torch.tensor([list(n) for n in numbers], dtype=torch.float64)
        self._tensors = {layer: dict(tensors[layer]) for layer in sorted(tensors)}
        self._edited = torch.zeros(self.count, site.layers, dtype=torch.bool)
        for edit, mine in enumerate(layers):
            self._edited[edit, list(mine)] = True
        self.layers = [n for n in self._tensors if bool(self._edited[:, n].any())]
        self.first_layers = [
            min((n for n in self.layers if self._edited[edit, n]), default=site.layers)
            for edit in range(self.count)
        ]

    def edits_layer(self, edit: int, layer: int) -> bool:
        """Return whether one of the edits edits a layer."""
        return bool(self._edited[edit, layer])

    def tensors_of(self, layer: int) -> Mapping[str, Tensor]:
        """Give the tensors of a layer by name, on the CPU."""
        return self._tensors[layer]

    @abstractmethod
    def change(self, tensors: Mapping[str, Tensor], rows: Tensor, numbers: Tensor) -> Tensor:
        """Compute what the rows become.

        Args:
            tensors: of the layer, on the rows' device.
            rows: A, ``[n, width]``.
            numbers: of each row's edit, ``[n, m]`` float32, on the rows' device.
        """

    def apply(self, layer: int, activations: Tensor, which: Tensor) -> Tensor:
        return self.placed(which)(layer, activations)

    def placed(self, which: Tensor) -> RowRule:
        tensors: dict[tuple[int, torch.device], dict[str, Tensor]] = {}
        edited: dict[tuple[int, torch.device], Tensor | None] = {}  # None: every row
        numbers: dict[torch.device, Tensor] = {}
        untouched: set[int] = set()

        def copy(layer: int, device: torch.device) -> None:
            here = self._edited[which, layer]
            if not here.any():
                untouched.add(layer)
                return
            mine = self._tensors[layer].items()
            tensors[layer, device] = {name: t.to(device) for name, t in mine}
            edited[layer, device] = None if here.all() else here.to(device).unsqueeze(-1)
            if device not in numbers:
                numbers[device] = self.numbers[which].to(device=device, dtype=torch.float32)

        def rule(layer: int, activations: Tensor) -> Tensor:
            key = layer, activations.device
            if layer in self._tensors and layer not in untouched and key not in tensors:
                copy(*key)
            if layer not in self._tensors or layer in untouched:
                return activations
            after = self.change(tensors[key], activations, numbers[activations.device])
            here = edited[key]
            after = after.to(activations.dtype)
            return after if here is None else torch.where(here, after, activations)

        return rule

    def digest(self, edit: int) -> str:
        rule = f"{type(self).__module__}.{type(self).__qualname__} {code_digest(self.rule)}"
        content = hashlib.sha256(
            f"{rule} {self.site.name} {self.scope} {self.gate_digest(edit)}".encode()
        )
        content.update(str(self.numbers[edit].tolist()).encode())
        for layer in self.layers:
            if not self._edited[edit, layer]:
                continue
            for name in sorted(self._tensors[layer]):
                tensor = self._tensors[layer][name].contiguous()
                content.update(f"{layer} {name} {tensor.dtype} {list(tensor.shape)} ".encode())
                content.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
        return content.hexdigest()
