"""Linear-AcT: carry activations from the negative to the positive side (arXiv 2410.23054)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.arguments import choice
from sadi_lmeval.edits.scaled import ScaledEdits
from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.base import Method, Tensors, scoped
from sadi_lmeval.methods.collectors import Kept, Shapes
from sadi_lmeval.settings import Axes, Axis, SearchSpace, Setting
from sadi_lmeval.types import Element, HiddenSite, Scope, Size

Transport = Literal["linear", "gaussian", "mean"]

# The paper writes λ; the name is that of its code, as `lambda` is no keyword argument in Python.
AXES = Axes(
    Axis("layer", "the decoder block whose activations are transported, counted from 0",
         whole=True, least=0, counts="layer"),
    Axis("strength", "λ: A' = (1 − λ) A + λ T(A), up to 1; 0 is the unsteered model (1 where only "
         "`layer` is given)", least=0, most=1, strength=True),
)  # fmt: skip
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""λ is bounded, so that a few values cover it. Every layer is tried."""
_LEAST_SPREAD = 1e-12
"""Of a source coordinate: its variance over max(1, its mean's square); below it, it is constant."""


@dataclass(frozen=True)
class LinearAcT(Method):
    """A' = (1 − λ) A + λ T(A) in one layer, from the last prompt token onwards.

    T is, in each coordinate by itself, an optimal transport from the negative side's activations
    to the positive side's (section 3): T(x) = ω (x − mean(negative)) + mean(positive).

    For the fit all activations of both sides are kept, 2 · pairs · layers · width float32 (157 MB
    of 150 pairs in 32 layers of 4096); a fit itself is four numbers a coordinate, and serves every
    ``transport``.
    """

    name = "linear-act"
    axes = AXES
    arms = {"linear-act": {}}  # noqa: RUF012

    scope: Scope = scoped()
    transport: Transport = choice(
        "linear", get_args(Transport), "ω: that of least squares between the sorted sides, "
        "`gaussian` (their standard deviations' ratio), or `mean` (1, which is CAA)",
        measured=False,
    )  # fmt: skip
    hidden_site: HiddenSite = choice(
        "residual", get_args(HiddenSite), "the block's output, or the `mlp`'s", measured=False
    )

    @property
    def place(self) -> tuple[Element, HiddenSite]:
        return "hidden", self.hidden_site

    def collector(self, site: Site, pairs: int, seed: int) -> Kept:
        shape = site.layers, site.width
        shapes: Shapes = dict.fromkeys(("difference", "source_mean", "linear", "gaussian"), shape)
        return Kept("transport", site, pairs, shapes, fit_transports)

    def search_space(self, size: Size | None) -> SearchSpace:
        layers = range(1 if size is None else size.layers)
        return SearchSpace(AXES, (tuple(layers), STRENGTHS))

    @property
    def usual(self) -> tuple[float | None, ...]:
        return None, 1.0  # which layer depends on the model

    def edits(
        self, site: Site, tensors: Tensors, settings: Sequence[Setting], seed: int
    ) -> ScaledEdits:
        layers = [int(layer) for layer, _ in settings]
        gain: dict[int, Tensor] = {}
        shift = {layer: tensors["difference"][layer] for layer in set(layers)}
        if self.transport != "mean":
            for layer, difference in shift.items():
                # T(x) − x = (ω − 1) x + difference − (ω − 1) mean(negative)
                gain[layer] = tensors[self.transport][layer] - 1
                offset = gain[layer].double() * tensors["source_mean"][layer]
                shift[layer] = (difference - offset).float()
        return ScaledEdits(
            site,
            strengths=[strength for _, strength in settings],
            layers=[[layer] for layer in layers],
            scope=self.scope,
            shift=shift,
            gain=gain,
        )


def fit_transports(positive: Tensor, negative: Tensor, label: str) -> dict[str, Tensor]:
    """Fit every transport to every coordinate.

    Where the source, which is the negative side, has no spread, ω is 1 and its mean is shifted.

    Args:
        positive, negative: activations, ``[pairs, layers, entries, entry_width]``.
        label: for a progress bar, of which this is too short for one.

    Returns:
        ``[layers, width]`` each: ``difference``, mean(positive) − mean(negative);
        ``source_mean``, mean(negative); ``linear`` and ``gaussian``, the ω of each.

    Raises:
        UserError: there is but one pair.
    """
    pairs, layers = positive.shape[:2]
    if pairs < 2:
        raise UserError(
            f"Linear-AcT needs at least 2 contrastive pairs, not {pairs}: one has no spread; pass "
            "a larger n_pairs"
        )
    found: dict[str, list[Tensor]] = {}
    for layer in range(layers):
        source, target = (side[:, layer].flatten(1).double() for side in (negative, positive))
        m_source, m_target = source.mean(dim=0), target.mean(dim=0)
        # In one dimension the optimal transport takes the i-th smallest to the i-th smallest.
        a = (source - m_source).sort(dim=0).values
        b = (target - m_target).sort(dim=0).values
        spread = a.square().sum(dim=0)
        spreads = spread > _LEAST_SPREAD * m_source.square().clamp(min=1) * pairs
        per_spread = spread.where(spreads, torch.ones_like(spread)).reciprocal()
        linear = (a * b).sum(dim=0) * per_spread
        gaussian = (b.square().sum(dim=0) * per_spread).sqrt()
        for name, values in (
            ("difference", m_target - m_source),
            ("source_mean", m_source),
            ("linear", linear.where(spreads, torch.ones_like(linear))),
            ("gaussian", gaussian.where(spreads, torch.ones_like(gaussian))),
        ):
            found.setdefault(name, []).append(values.float())
    return {name: torch.stack(of_layers) for name, of_layers in found.items()}
