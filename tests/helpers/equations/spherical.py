"""Spherical steering, written out (arXiv 2602.08169)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from helpers.equations.contract import LAYERS, Equations, Given
from helpers.equations.mean_difference import assert_difference, mean_difference
from helpers.loops import Change


def turned(x: Tensor, mu: Tensor, given: Given) -> Tensor:
    """One state ``[width]`` float64, by two von Mises-Fisher distributions and a rotation.

    Args:
        mu: μ, of length 1.
        given: alpha, beta; kappa and gate where they are not the usual ones.
    """
    alpha, beta, kappa = given["alpha"], given["beta"], given.get("kappa", 20)
    norm = math.sqrt(float(sum(x * x)))
    if norm < 1e-12:
        return x
    cosine = max(-1.0, min(1.0, float(sum(x * mu)) / norm))
    likely = [math.exp(kappa * (c - abs(cosine))) for c in (-cosine, cosine)]
    disagreement = (likely[0] - likely[1]) / sum(likely)
    part = alpha
    if given.get("gate", "on") == "on":
        if disagreement <= beta:
            return x
        part = alpha * (disagreement - beta) / (1 - beta)
    theta = math.acos(cosine)
    if math.sin(theta) < 1e-4:
        return x
    aside = (x / norm - cosine * mu) / math.sin(theta)
    left = (1 - part) * theta
    return norm * (math.cos(left) * mu + math.sin(left) * aside)


def spherical_change(difference: Tensor, given: Given) -> Change:
    mu = difference[int(given["layer"])].double()
    mu = mu / math.sqrt(float(sum(mu * mu)))
    if given.get("towards") == "negative":
        mu = -mu

    def change(layer: int, values: Tensor) -> Tensor:
        if layer != given["layer"]:
            return values
        return torch.stack([turned(x.double(), mu, given).float() for x in values])

    return change


ALPHAS, BETAS = (0.3, 0.5, 0.7, 0.9), (-1.0, -0.4, -0.15, 0.1, 0.4)

EQUATIONS = Equations(
    given={"n_pairs": 12, "layer": 1, "alpha": 0.9, "beta": -0.9},
    where=lambda given: "residual",
    measure=mean_difference,
    change=spherical_change,
    places=lambda v, given: None,
    assert_measured=assert_difference,
    served=[{"layer": 2, "beta": 0.1}, {"towards": "negative", "kappa": 3}],
    chosen=(
        {"grid": "0/2x0.4/0.9x-1/-0.15", "n_tune": 8},
        [(layer, a, b) for layer in (0, 2) for a in (0.4, 0.9) for b in (-1, -0.15)],
    ),
    narrowed=[
        (
            {"layer": "auto", "alpha": "auto", "beta": "auto"},
            [(layer, a, b) for layer in range(LAYERS) for a in ALPHAS for b in BETAS],
        ),
        ({"layer": 2, "alpha": "auto", "gate": "off"}, [(2, a, -0.15) for a in ALPHAS]),
        ({"beta": 0.2}, [(layer, 0.7, 0.2) for layer in range(LAYERS)]),
    ],
    usual=[
        ({"layer": 2, "alpha": 1, "beta": -1}, (2, 1, -1)),
        ({"layer": 2}, (2, 0.7, -0.15)),
    ],
    cases=[{}, {"scope": "prompt", "towards": "negative", "gate": "off", "layer": 2}],
    generated=[{}, {"scope": "prompt", "towards": "negative", "layer": 0}],
)
