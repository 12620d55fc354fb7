"""Nudge: move the residual stream along one direction, by a share of its own length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

import sadi_lmeval as sadi


def push(projection: Tensor, norm: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """A' = A + share · |A| u: what already lies along u is not looked at."""
    return projection.new_ones(len(projection)), numbers * norm.unsqueeze(-1)


def directions(positive: Tensor, negative: Tensor, label: str, average: str) -> dict[str, Tensor]:
    """One unit vector a layer along the pairs' differences, ``[layers, hidden]``."""
    differences = (positive - negative).flatten(2)  # [pairs, layers, hidden]
    found = differences.mean(dim=0) if average == "mean" else differences.median(dim=0).values
    return {"direction": found / found.norm(dim=-1, keepdim=True).clamp(min=1e-12)}


@dataclass(frozen=True)
class Nudge(sadi.Method):
    """A' = A + share · |A| u after one decoder block, from the last prompt token onwards."""

    name = "nudge"
    scope = "onwards"
    axes = sadi.Axes(
        sadi.Axis("layer", "the block after which", whole=True, least=0, counts="layer"),
        sadi.Axis("share", "how far, as a share of the activation's length", strength=True),
    )
    arms = {"nudge": {}}  # noqa: RUF012

    average: str = sadi.choice("mean", ("mean", "median"), "of the pairs' differences")

    @property
    def place(self) -> tuple[sadi.Element, sadi.HiddenSite]:
        return "hidden", "residual"

    def collector(self, site: sadi.Site, pairs: int, seed: int) -> sadi.Kept:
        shapes: dict[str, tuple[int, ...]] = {"direction": (site.layers, site.width)}
        make = partial(directions, average=self.average)
        return sadi.Kept("nudge_direction", site, pairs, shapes, make)

    def search_space(self, size: sadi.Size | None) -> sadi.SearchSpace:
        layers = range(1 if size is None else size.layers)
        return sadi.SearchSpace(self.axes, (tuple(layers), (0.5, 1.0)))

    def edits(
        self,
        site: sadi.Site,
        tensors: Mapping[str, Tensor],
        settings: Sequence[sadi.Setting],
        seed: int,
    ) -> sadi.DirectionEdits:
        layers = [int(layer) for layer, _ in settings]
        u = {layer: tensors["direction"][layer].unsqueeze(0) for layer in layers}
        shares = [[share] for _, share in settings]
        return sadi.DirectionEdits(
            site, push, shares, [[layer] for layer in layers], self.scope, read=u
        )
