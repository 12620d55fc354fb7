"""The edit of activations that every method comes down to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from sadi_lmeval.hooks import visiting
from sadi_lmeval.positions import Points
from sadi_lmeval.sites import Site


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

    Attributes:
        clean: whether A is the activation of an unsteered forward pass, whose whole site is
            written back in every layer, instead of the activation of the steered pass itself.
    """

    def __init__(self, site: Site, edits: Sequence[Edit], clean: bool) -> None:
        self.site = site
        self.clean = clean
        self.gain = torch.stack([edit.gain for edit in edits])  # [edits, layers, width]
        zero = torch.zeros_like(self.gain[0])
        self.shift: Tensor | None = None
        if any(edit.shift is not None for edit in edits):
            self.shift = torch.stack([zero if e.shift is None else e.shift for e in edits])
        touched = self.gain.any(dim=-1).any(dim=0)
        if self.shift is not None:
            touched |= self.shift.any(dim=-1).any(dim=0)
        self.layers: list[int] = touched.nonzero().flatten().tolist()

    @property
    def written_layers(self) -> list[int]:
        """The layers whose site is written: with clean activations all, else the edited ones."""
        return list(range(self.site.layers)) if self.clean and self.layers else self.layers

    def apply(self, layer: int, activations: Tensor, which: Tensor) -> Tensor:
        """A + gain ⊙ A + shift in one layer.

        Args:
            layer: the layer.
            activations: A, ``[n, width]``.
            which: the index of the edit for each row of A, ``[n]`` on the CPU.
        """
        gain = self.gain[which, layer].to(activations)
        after = activations + gain * activations
        if self.shift is not None:
            after = after + self.shift[which, layer].to(activations)
        return after

    @contextmanager
    def at(self, points: Points, which: Tensor, clean: Tensor | None) -> Iterator[None]:
        """Edit the activations at ``points`` while the block runs.

        Args:
            points: n positions.
            which: the index of the edit for each, ``[n]`` on the CPU.
            clean: unsteered activations ``[n, layers, width]`` where ``self.clean``, else None.
        """
        if not self.layers or not len(which):
            yield
            return

        def visit(layer: int, activations: Tensor) -> Tensor:
            before = points.read(activations) if clean is None else clean[:, layer]
            return points.write(activations, self.apply(layer, before.to(activations), which))

        modules = {layer: self.site.modules[layer] for layer in self.written_layers}
        with visiting(modules, self.site.side, visit):
            yield


@contextmanager
def reading(site: Site, points: Points) -> Iterator[list[Tensor]]:
    """Collect the activations at ``points``: one ``[n, width]`` a layer, in layer order."""
    collected: list[Tensor] = []

    def visit(layer: int, activations: Tensor) -> None:
        collected.append(points.read(activations))

    with visiting(dict(enumerate(site.modules)), site.side, visit):
        yield collected
