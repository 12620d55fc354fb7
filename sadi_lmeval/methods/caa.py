"""CAA: add the mean difference of the residual stream in one layer (Rimsky et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.edits.scaled import ScaledEdits
from sadi_lmeval.methods.base import Method, Tensors, scoped
from sadi_lmeval.methods.collectors import MeanDifference
from sadi_lmeval.settings import Axes, Axis, SearchSpace, Setting
from sadi_lmeval.types import Element, HiddenSite, Scope, Size

AXES = Axes(
    Axis("layer", "the decoder block whose output is shifted, counted from 0", whole=True, least=0,
         counts="layer"),
    Axis("multiplier", "strength: h' = h + multiplier · v; 0 is the unsteered model, a negative "
         "one steers towards the negative answers (1 where only `layer` is given)", strength=True),
)  # fmt: skip
MULTIPLIERS = (0.5, 1.0, 1.5, 2.0)
"""The authors go to 2 (section 4). Every layer is tried."""


@dataclass(frozen=True)
class CAA(Method):
    """h' = h + multiplier · v after one decoder block, from the last prompt token onwards.

    v is mean(positive) − mean(negative) of that block's output at the answer's last token
    (section 3).
    """

    name = "caa"
    axes = AXES
    arms = {"caa": {}}  # noqa: RUF012

    scope: Scope = scoped()

    @property
    def place(self) -> tuple[Element, HiddenSite]:
        return "hidden", "residual"

    def collector(self, site: Site, pairs: int, seed: int) -> MeanDifference:
        return MeanDifference(site, pairs)

    def search_space(self, size: Size | None) -> SearchSpace:
        layers = range(1 if size is None else size.layers)
        return SearchSpace(AXES, (tuple(layers), MULTIPLIERS))

    @property
    def usual(self) -> tuple[float | None, ...]:
        return None, 1.0  # which layer depends on the model

    def edits(
        self, site: Site, tensors: Tensors, settings: Sequence[Setting], seed: int
    ) -> ScaledEdits:
        v = tensors["difference"].flatten(1)
        layers = [int(layer) for layer, _ in settings]
        return ScaledEdits(
            site,
            strengths=[multiplier for _, multiplier in settings],
            layers=[[layer] for layer in layers],
            scope=self.scope,
            shift={layer: v[layer] for layer in set(layers)},
        )
