"""Spherical steering: turn states that disagree towards the mean difference (arXiv 2602.08169)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sadi_lmeval.architecture.sites import Site
from sadi_lmeval.arguments import choice, number
from sadi_lmeval.edits.directions import DirectionEdits
from sadi_lmeval.methods.base import Method, Tensors, scoped
from sadi_lmeval.methods.collectors import MeanDifference
from sadi_lmeval.settings import Axes, Axis, SearchSpace, Setting
from sadi_lmeval.types import Element, HiddenSite, Scope, Size

Towards = Literal["positive", "negative"]
Gate = Literal["on", "off"]

_LEAST_NORM = 1e-12
"""Below it a state has no direction."""
_LEAST_SINE = 1e-4
"""Of the angle to μ: below it the plane of the rotation is not known, at both ends."""

AXES = Axes(
    Axis("layer", "the decoder block whose output is rotated, counted from 0", whole=True, least=0,
         counts="layer"),
    Axis("alpha", "strength: the largest part of the angle to μ that a rotation takes away; 0 is "
         "the unsteered model, 1 reaches μ (0.7 where others are given)", least=0, most=1,
         strength=True),
    Axis("beta", "threshold of the gate: a state is left alone where tanh(−kappa · cos(h, μ)) is "
         "not above it; -1 rotates every state, by how much it disagrees (-0.15 where others are "
         "given)", least=-1, most=0.99),
)  # fmt: skip
ALPHAS = (0.3, 0.5, 0.7, 0.9)
BETAS = (-1.0, -0.4, -0.15, 0.1, 0.4)
"""Both about where the authors' picks for six tasks and two models lie."""
_MOST_LAYERS = 16
"""Of deeper models the layers that are tried are spread evenly, no more than these."""


@dataclass(frozen=True)
class Spherical(Method):
    """h' = h turned towards μ in the plane of both, its norm kept, after one decoder block.

    μ is mean(positive) − mean(negative) of that block's output at the answer's last token, of
    length 1; it is CAA's vector, and both methods share a fit. How far a state is turned follows
    from its own angle to μ: see :func:`gated`.
    """

    name = "spherical"
    axes = AXES
    arms = {"spherical": {}}  # noqa: RUF012
    ablations = {"spherical-ungated": {"gate": "off"}}  # noqa: RUF012

    scope: Scope = scoped()
    kappa: float = number(
        20.0, "how sharply the gate tells states that agree with μ from those that do not",
        least=0, measured=False,
    )  # fmt: skip
    towards: Towards = choice(
        "positive", get_args(Towards), "the answers that μ points to", measured=False
    )
    gate: Gate = choice(
        "on", get_args(Gate), "`off` takes the part alpha of every state's angle, whatever kappa "
        "and beta (an ablation)", measured=False,
    )  # fmt: skip

    @property
    def place(self) -> tuple[Element, HiddenSite]:
        return "hidden", "residual"

    def collector(self, site: Site, pairs: int, seed: int) -> MeanDifference:
        return MeanDifference(site, pairs)

    def search_space(self, size: Size | None) -> SearchSpace:
        layers = 1 if size is None else size.layers
        step = -(-layers // _MOST_LAYERS)
        betas = BETAS if self.gate == "on" else BETAS[:1]  # without a gate they are all one
        return SearchSpace(AXES, (tuple(range(0, layers, step)), ALPHAS, betas))

    @property
    def usual(self) -> tuple[float | None, ...]:
        return None, 0.7, -0.15  # the authors' for Llama-3.1-8B on TruthfulQA

    def edit_size(self, setting: Setting, tensors: Tensors) -> float:
        """Say how large an edit is: alpha, times the mean part of it over what the gate may say."""
        _, alpha, beta = setting
        return alpha * (1.0 if self.gate == "off" else (1 - beta) / 4)

    def edits(
        self, site: Site, tensors: Tensors, settings: Sequence[Setting], seed: int
    ) -> DirectionEdits:
        sign = 1 if self.towards == "positive" else -1
        difference = sign * tensors["difference"].flatten(1).double()
        mu = {
            layer: (d / d.norm()).float().unsqueeze(0)
            for layer, d in enumerate(difference)
            if d.norm() >= _LEAST_NORM
        }
        layers = [[int(layer)] if alpha and layer in mu else [] for layer, alpha, _ in settings]
        return DirectionEdits(
            site,
            gated if self.gate == "on" else ungated,
            numbers=[[alpha, beta, self.kappa] for _, alpha, beta in settings],
            layers=layers,
            scope=self.scope,
            read={layer: mu[layer] for of_edit in layers for layer in of_edit},
        )


def gated(projections: Tensor, norms: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Turn by the part t = alpha (Δ − beta) / (1 − beta) of the angle where Δ > beta, else not.

    Δ = p(−μ) − p(μ) of two von Mises-Fisher distributions of concentration kappa about −μ and μ,
    which is −tanh(kappa c) with c the cosine of the state and μ.

    Args:
        projections: h · μ, ``[n, 1]``.
        norms: |h|, ``[n]``.
        numbers: alpha, beta and kappa, ``[n, 3]``.
    """
    alpha, beta, kappa = numbers.unbind(dim=-1)
    cosine = _cosine(projections, norms)
    disagreement = -torch.tanh(kappa * cosine)
    part = (alpha * (disagreement - beta) / (1 - beta)).clamp(0, 1)
    return _turned(cosine, norms, torch.where(disagreement > beta, part, 0.0))


def ungated(projections: Tensor, norms: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Turn every state by the part alpha of its angle; arguments as those of :func:`gated`."""
    return _turned(_cosine(projections, norms), norms, numbers[:, 0])


def _cosine(projections: Tensor, norms: Tensor) -> Tensor:
    return (projections[:, 0] / norms).clamp(-1, 1)


def _turned(cosine: Tensor, norms: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
    """Give h' = |h| (cos θ' μ + sin θ' e) as scale · h + C μ.

    θ is the angle of h and μ, θ' = (1 − t) θ, and e = (h / |h| − cos θ μ) / sin θ.

    Args:
        cosine: cos θ, ``[n]``.
        norms: |h|, ``[n]``.
        part: t, ``[n]`` in [0, 1].

    Returns:
        the scale, ``[n]``, and C, ``[n, 1]``; 1 and 0 where h is left alone.
    """
    theta = cosine.acos()
    sine, left = theta.sin(), (1 - part) * theta
    scale = left.sin() / sine
    along = norms * (left.cos() - scale * cosine)
    # A comparison with NaN is false: a state that is not finite stays as it is, too.
    turns = (part > 0) & (norms >= _LEAST_NORM) & norms.isfinite() & (sine >= _LEAST_SINE)
    scale, along = torch.where(turns, scale, 1.0), torch.where(turns, along, 0.0)
    return scale, along.unsqueeze(-1)
