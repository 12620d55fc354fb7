"""ODESteer, written out with every product of degree 2 (arXiv 2602.17560)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from helpers.equations.contract import LAYERS, Equations, Given
from helpers.loops import Change

GAMMA, COEF0 = 0.1, 1.0


class Classifier(NamedTuple):
    """Of a layer.

    Attributes:
        weights: of the products.
        mean_norm: of the pairs' activations.
    """

    weights: Tensor
    mean_norm: float


def products(x: Tensor) -> Tensor:
    """All products of degree 2 and less of x / |x|: their inner products are the kernel.

    Args:
        x: ``[..., width]``.

    Returns:
        ``[..., 1 + width + width²]``.
    """
    unit = x / x.norm(dim=-1, keepdim=True)
    one = torch.ones_like(unit[..., :1])
    squares = (unit.unsqueeze(-1) * unit.unsqueeze(-2)).flatten(-2)
    return torch.cat([COEF0 * one, math.sqrt(2 * GAMMA * COEF0) * unit, GAMMA * squares], dim=-1)


def classifiers_of(positive: Tensor, negative: Tensor, given: Given) -> list[Classifier]:
    """A logistic regression on the products themselves, one layer after another.

    Args:
        positive, negative: ``[pairs, layers, width]`` float64.
    """
    found = []
    for layer in range(positive.shape[1]):
        rows = torch.cat([positive[:, layer], negative[:, layer]])
        labels = [1] * len(positive) + [0] * len(negative)
        fitted = LogisticRegression(C=1, tol=1e-9, max_iter=10_000)
        fitted.fit(products(rows).numpy(), labels)
        norms = [math.sqrt(float(sum(x * x))) for x in rows]
        found.append(Classifier(torch.from_numpy(fitted.coef_[0]), sum(norms) / len(norms)))
    return found


def slope(weights: Tensor, x: Tensor) -> Tensor:
    """The gradient of the classifier's logit at each x, ``[n, width]`` float64."""
    x = x.clone().requires_grad_()
    [gradient] = torch.autograd.grad((products(x) @ weights).sum(), x)
    return gradient


def way(weights: Tensor, x: Tensor, distance: float, steps: int) -> Tensor:
    """Euler's steps along the gradient's direction, ``[n, width]`` float64."""
    for _ in range(steps):
        with torch.enable_grad():
            rising = slope(weights, x)
        x = x + distance / steps * rising / rising.norm(dim=-1, keepdim=True)
    return x


def odesteer_change(known: list[Classifier], given: Given) -> Change:
    one = known[int(given["layer"])]
    relative = given.get("unit", "norm") == "norm"
    distance = given["tau"] * (one.mean_norm if relative else 1)

    def change(layer: int, values: Tensor) -> Tensor:
        if layer != given["layer"]:
            return values
        return way(one.weights, values.double(), distance, given.get("steps", 10)).float()

    return change


def assert_classifiers(tensors: Mapping[str, Tensor], expected: list[Classifier]) -> None:
    """The weights that the dual ones come to, so that what one calls q does not matter."""
    for layer, one in enumerate(expected):
        rows = tensors["rows"][layer].double()
        weights = tensors["dual"][layer].double() @ products(rows)
        assert float(one.weights.norm()) > 0.05
        torch.testing.assert_close(weights, one.weights, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            float(tensors["mean_norm"][layer]), one.mean_norm, atol=0, rtol=1e-5
        )


TAUS = (0.05, 0.1, 0.2, 0.4, 0.8)

EQUATIONS = Equations(
    given={"n_pairs": 12, "layer": 1, "tau": 0.8},
    where=lambda given: "residual",
    measure=classifiers_of,
    change=odesteer_change,
    places=lambda known, given: None,
    assert_measured=assert_classifiers,
    served=[{"layer": 2, "tau": -0.4}, {"steps": 2, "unit": "absolute"}],
    chosen=(
        {"grid": "0/2x-0.3/0.8", "n_tune": 8},
        [(0, -0.3), (0, 0.8), (2, -0.3), (2, 0.8)],
    ),
    narrowed=[
        ({"layer": 2, "tau": "auto"}, [(2, t) for t in TAUS]),
        (
            {"layer": 1, "tau": "auto", "unit": "absolute"},
            [(1, t) for t in (1, 2.5, 5, 10, 20)],
        ),
        ({"tau": 0.3}, [(layer, 0.3) for layer in range(LAYERS)]),
    ],
    usual=[
        ({"layer": 2, "tau": 2}, (2, 2)),
        ({"layer": 2}, (2, 0.2)),
        ({"layer": 2, "unit": "absolute"}, (2, 5)),
    ],
    cases=[
        {},
        {"scope": "prompt", "layer": 0, "tau": -3, "steps": 3, "unit": "absolute"},
    ],
    generated=[{}, {"scope": "prompt", "tau": -0.8, "steps": 3}],
)
