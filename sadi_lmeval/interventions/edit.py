"""The edit of activations that every method comes down to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sadi_lmeval.architecture.hooks import visiting
from sadi_lmeval.architecture.positions import Points
from sadi_lmeval.architecture.sites import Site

Scope = Literal["prompt", "onwards"]
"""Which tokens are edited: the last prompt token alone, or every later token too."""


@dataclass(frozen=True)
class Edit:
    """A' = A + gain ⊙ A + shift, at a site.

    Attributes:
        gain: ``[layers, width]`` float32, on the CPU.
        shift: ``[layers, width]`` float32, on the CPU, or None for zero.
    """

    gain: Tensor
    shift: Tensor | None = None


class Edits:
    """Several edits of one site, so that each position of a batch can have its own.

    Only the entries that some edit touches are kept: a grid of hundreds of settings stays small.

    Attributes:
        clean: whether A is the activation of an unsteered forward pass, whose whole site is
            written back in every layer, instead of the activation of the steered pass itself.
            Only the last prompt token has such a one.
        scope: which tokens are edited.
        count: how many edits.
        first_layers: the first layer that each edit touches; ``site.layers`` where none.
        layers: the layers that some edit touches, in order.
    """

    def __init__(
        self, site: Site, edits: Iterable[Edit], clean: bool, scope: Scope = "prompt"
    ) -> None:
        self.site = site
        self.clean = clean
        self.scope = scope
        found = [_touched(edit) for edit in edits]
        self.count = len(found)
        self.first_layers = [
            int(where[:, 0].min()) if len(where) else site.layers for where, _ in found
        ]
        every = torch.cat([where for where, _ in found]) if found else torch.zeros(0, 2).long()
        self.layers: list[int] = torch.unique(every[:, 0]).tolist()
        self._entries: dict[int, Tensor] = {}  # layer -> [n] touched entries
        self._change: dict[int, Tensor] = {}  # layer -> [edits, 2, n] gain and shift of them
        for layer in self.layers:
            entries = torch.unique(every[every[:, 0] == layer, 1])
            change = torch.zeros(len(found), 2, len(entries))
            for edit, (where, values) in enumerate(found):
                here = where[:, 0] == layer
                change[edit, :, torch.searchsorted(entries, where[here, 1])] = values[:, here]
            self._entries[layer], self._change[layer] = entries, change

    @property
    def written_layers(self) -> list[int]:
        """The layers whose site is written: with clean activations all, else the edited ones."""
        return list(range(self.site.layers)) if self.clean and self.layers else self.layers

    def digest(self, edit: int) -> str:
        """sha256 of what one of the edits does."""
        content = hashlib.sha256(f"{self.site.element} {self.clean} {self.scope}".encode())
        for layer in self.layers:
            change = self._change[layer][edit]
            touched = change.any(dim=0)
            if not touched.any():
                continue
            for part in (self._entries[layer][touched], change[:, touched]):
                content.update(f"{layer} ".encode() + part.contiguous().numpy().tobytes())
        return content.hexdigest()

    def apply(self, layer: int, activations: Tensor, which: Tensor) -> Tensor:
        """A + gain ⊙ A + shift in one layer.

        Args:
            layer: the layer.
            activations: A, ``[n, width]``.
            which: the index of the edit for each row of A, ``[n]`` on the CPU.
        """
        if layer not in self._entries:
            return activations
        entries = self._entries[layer].to(activations.device)
        gain, shift = self._change[layer][which].to(activations).unbind(dim=1)
        before = activations[:, entries]
        after = before + gain * before + shift
        return activations.index_copy(1, entries, after)

    @contextmanager
    def at(
        self,
        points: Points,
        which: Tensor,
        clean: Tensor | None,
        of_point: Tensor | None = None,
    ) -> Iterator[None]:
        """Edit the activations at ``points`` while the block runs.

        Args:
            points: n positions.
            which: the index of the edit for each, ``[n]`` on the CPU.
            clean: unsteered activations ``[k, layers, width]`` where ``self.clean``, else None.
            of_point: the row of ``clean`` for each position, ``[n]``; None: k = n, in order.
        """
        if not self.layers or not len(which):
            yield
            return

        def visit(layer: int, activations: Tensor) -> Tensor:
            if clean is None:
                before = points.read(activations)
            else:
                before = clean[:, layer] if of_point is None else clean[of_point, layer]
            return points.write(activations, self.apply(layer, before.to(activations), which))

        modules = {layer: self.site.modules[layer] for layer in self.written_layers}
        with visiting(modules, self.site.side, visit):
            yield


def _touched(edit: Edit) -> tuple[Tensor, Tensor]:
    """(layer, entry) of what an edit touches, ``[n, 2]``, and its gain and shift, ``[2, n]``."""
    shift = torch.zeros_like(edit.gain) if edit.shift is None else edit.shift
    where = ((edit.gain != 0) | (shift != 0)).nonzero()
    rows, entries = where.unbind(dim=1)
    return where, torch.stack([edit.gain[rows, entries], shift[rows, entries]])


@contextmanager
def reading(site: Site, points: Points) -> Iterator[list[Tensor]]:
    """Collect the activations at ``points``: one ``[n, width]`` a layer, in layer order."""
    collected: list[Tensor] = []

    def visit(layer: int, activations: Tensor) -> None:
        collected.append(points.read(activations))

    with visiting(dict(enumerate(site.modules)), site.side, visit):
        yield collected
