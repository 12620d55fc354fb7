"""CAA, written out (Rimsky et al. 2023), with the other directions that v may have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from helpers.equations.contract import LAYERS, WIDTH, Equations, Given
from helpers.equations.mean_difference import assert_difference, mean_difference
from helpers.loops import adding


def component(right: list[Any], wrong: list[Any]) -> Any:
    """The main axis of all states, each without the mean of its pair, towards more of the right."""
    covariance = np.zeros((WIDTH, WIDTH))
    for one, other in zip(right, wrong, strict=True):
        middle = (one + other) / 2
        for state in (one - middle, other - middle):
            covariance += np.outer(state, state)
    axis = np.linalg.eigh(covariance)[1][:, -1]
    largest = max(axis, key=abs)
    axis = axis if largest > 0 else -axis
    votes = 0
    for one, other in zip(right, wrong, strict=True):
        votes += 1 if sum(one * axis) > sum(other * axis) else -1
    return axis if votes >= 0 else -axis


def coefficients(right: list[Any], wrong: list[Any]) -> Any:
    labels = [1] * len(right) + [0] * len(wrong)
    return LogisticRegression(max_iter=1000, tol=1e-8).fit([*right, *wrong], labels).coef_[0]


def vectors(positive: Tensor, negative: Tensor, given: Given) -> Tensor:
    """v of each layer, ``[layers, width]``: of the length of the mean difference, whatever way."""
    mean = mean_difference(positive, negative, given)
    direction = given.get("direction", "mean")
    if direction == "mean":
        return mean
    drawn = torch.randn(LAYERS, WIDTH, generator=torch.Generator().manual_seed(0)).double()
    found = torch.zeros(LAYERS, WIDTH)
    for layer in range(LAYERS):
        right, wrong = ([s[layer].numpy() for s in side] for side in (positive, negative))
        raw = drawn[layer].numpy()
        if direction != "random":
            raw = (component if direction == "pca" else coefficients)(right, wrong)
        length = math.sqrt(sum(float(x) ** 2 for x in mean[layer]))
        own = math.sqrt(sum(float(x) ** 2 for x in raw))
        found[layer] = torch.from_numpy(raw * length / own).float()
    return found


def caa_shift(vector: Tensor, layer: int, multiplier: float) -> Tensor:
    """What is added to the residual stream, ``[layers, width]``."""
    shift = torch.zeros(LAYERS, WIDTH)
    shift[layer] = multiplier * vector[layer]
    return shift


def assert_vectors(tensors: Mapping[str, Tensor], expected: Tensor) -> None:
    if "difference" in tensors:
        assert_difference(tensors, expected)
        return
    torch.testing.assert_close(tensors["vector"].flatten(1), expected, atol=5e-3, rtol=1e-3)


EQUATIONS = Equations(
    given={"n_pairs": 12, "layer": 1, "multiplier": 1},
    where=lambda given: "residual",
    measure=vectors,
    change=lambda v, given: adding(caa_shift(v, given["layer"], given["multiplier"])),
    places=lambda v, given: None,
    assert_measured=assert_vectors,
    served=[{"layer": 2, "multiplier": -2}, {"scope": "prompt"}, {"direction": "random"}],
    chosen=({"n_tune": 8}, [(n, m) for n in range(LAYERS) for m in (0.5, 1.0, 1.5, 2.0)]),
    narrowed=[
        ({"layer": 2, "multiplier": "auto"}, [(2, m) for m in (0.5, 1, 1.5, 2)]),
        ({"multiplier": -1}, [(layer, -1) for layer in range(LAYERS)]),
        ({"multiplier": 2.5}, [(layer, 2.5) for layer in range(LAYERS)]),
    ],
    usual=[
        ({"layer": 2, "multiplier": 2}, (2, 2)),
        ({"layer": 2}, (2, 1)),
    ],
    cases=[
        *({"layer": layer, "multiplier": -1.5} for layer in range(LAYERS)),
        {"scope": "prompt"},
        {"direction": "pca"},
        {"direction": "probe"},
        {"direction": "random"},
    ],
    generated=[
        {"layer": 0, "multiplier": 1.5},
        {"layer": 2, "multiplier": 1.5},
        {"scope": "prompt"},
    ],
)
