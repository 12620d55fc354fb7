"""Clamping: set what lies along one direction of the residual stream, to zero or to a value.

Directional ablation (Arditi et al. 2024, arXiv 2406.11717, equation 4) sets it to zero. Clamping
sets it to what the positive texts have there on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.arguments import choice
from sadi_lmeval.edits.directions import DirectionEdits
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.base import Found, Method, Tensors, scoped
from sadi_lmeval.methods.collectors import Shapes
from sadi_lmeval.processes import Processes
from sadi_lmeval.settings import Axes, Axis, SearchSpace, Setting
from sadi_lmeval.types import Element, HiddenSite, Scope, Size

To = Literal["positive", "zero"]
Blocks = Literal["one", "all"]

AXES = Axes(
    Axis("layer", "the decoder block whose direction is taken, counted from 0; with `blocks=one` "
         "its output is edited", whole=True, least=0, counts="layer"),
    Axis("share", "how much of the way to the target: 1 is all of it, 0 the unsteered model (1 "
         "where only `layer` is given)", least=0, most=1, strength=True),
)  # fmt: skip
SHARES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Clamping(Method):
    """A' = A + share · (target − A · u) u after one decoder block, or after every one.

    u is the unit mean difference of the chosen block's output at the answer's last token. The
    target is 0 (directional ablation), or the positive texts' mean projection on u in the block
    that is edited (clamping).
    """

    name = "clamping"
    axes = AXES
    arms = {"clamping": {"to": "positive"}, "ablation": {"to": "zero"}}  # noqa: RUF012

    scope: Scope = scoped()
    to: To = choice(
        "positive", get_args(To), "the target: the `positive` texts' mean projection, or `zero` "
        "(directional ablation)", measured=False,
    )  # fmt: skip
    blocks: Blocks = choice(
        "one", get_args(Blocks), "which blocks are edited along the chosen block's direction: that "
        "`one`, or `all`", measured=False,
    )  # fmt: skip

    @property
    def place(self) -> tuple[Element, HiddenSite]:
        return "hidden", "residual"

    def collector(self, site: Site, pairs: int, seed: int) -> SideMeans:
        return SideMeans(site, pairs)

    def search_space(self, size: Size | None) -> SearchSpace:
        layers = range(1 if size is None else size.layers)
        return SearchSpace(AXES, (tuple(layers), SHARES))

    @property
    def usual(self) -> tuple[float | None, ...]:
        return None, 1.0  # which layer depends on the model

    def found(self, tensors: Tensors) -> Found:
        return Found("mean difference", (tensors["positive"] - tensors["negative"]).mean(dim=-1))

    def edits(
        self, site: Site, tensors: Tensors, settings: Sequence[Setting], seed: int
    ) -> DirectionEdits:
        # Doubles, whose products do not show where in memory a fit lies: a file's or our own.
        positive, negative = (
            tensors[side].flatten(1).double() for side in ("positive", "negative")
        )
        u = torch.nn.functional.normalize(positive - negative, dim=-1)  # a zero vector stays one
        targets = positive @ u.T  # of each edited block along each block's direction
        offset = (torch.zeros_like(targets) if self.to == "zero" else -targets).float()
        u = u.float()
        steers = [bool(share and u[int(layer)].any()) for layer, share in settings]
        every = range(site.layers)
        if self.blocks == "one":
            return DirectionEdits(
                site,
                approach,
                [[share] for _, share in settings],
                [[int(layer)] if acts else [] for (layer, _), acts in zip(settings, steers,
                                                                          strict=True)],
                self.scope,
                read={n: u[n : n + 1] for n in every},
                offset={n: offset[n, n : n + 1] for n in every},
            )  # fmt: skip
        # Every block reads along every direction, and a setting's numbers take one of them.
        one_of = torch.eye(site.layers, dtype=torch.float64)
        return DirectionEdits(
            site,
            approach,
            [(share * one_of[int(layer)]).tolist() for layer, share in settings],
            [list(every) if acts else [] for acts in steers],
            self.scope,
            read=dict.fromkeys(every, u),
            offset={n: offset[n] for n in every},
        )


def approach(distance: Tensor, norm: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Take a share of the way: A' = A − share · (A · u − target) u.

    Args:
        distance: A · u − target along each direction, ``[n, r]``.
        norm: |A|, which is not looked at.
        numbers: the share along each direction, ``[n, r]``.
    """
    return distance.new_ones(len(distance)), -numbers * distance


class SideMeans:
    """Mean activations of either side, summed as float64 streams.

    Makes ``positive`` and ``negative``, ``[layers, entries, entry_width]`` each.
    """

    kind = "side_means"

    def __init__(self, site: Site, pairs: int) -> None:
        self.site, self.pairs = site, pairs
        self.shapes: Shapes = {"positive": site.shape, "negative": site.shape}
        self.totals = torch.zeros(2, site.layers, site.width, dtype=torch.float64)

    def add(self, pairs: list[int], signs: list[int], values: Tensor) -> None:
        for sign, value in zip(signs, values, strict=True):
            self.totals[0 if sign > 0 else 1].add_(value)

    def join(self, processes: Processes) -> None:
        self.totals = processes.all_reduce(self.totals)

    def tensors(self, label: str) -> dict[str, Tensor]:
        means = (self.totals / self.pairs).float()
        bad = int((~means.isfinite()).sum())
        if bad:
            raise UserError(
                f"the pairs' activations are not finite at {bad} of {means.numel()} places "
                f"({self.site.element}); load the model in a wider type (dtype=bfloat16 or float32)"
            )
        positive, negative = (side.reshape(self.site.shape) for side in means)
        return {"positive": positive, "negative": negative}
