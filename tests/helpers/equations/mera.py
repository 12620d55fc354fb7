"""MERA, written out (arXiv 2510.13290), with a probe that tells the pairs' two sides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from helpers.equations.contract import LAYERS, Equations, Given
from helpers.loops import Change


class Probe(NamedTuple):
    """A state h is a negative answer's with probability 1 / (1 + exp(−(weight · h + bias)))."""

    weight: np.ndarray[Any, Any]
    bias: float


def probes_of(positive: Tensor, negative: Tensor, given: Given) -> list[Probe]:
    """One a layer, of ``[pairs, layers, width]``."""
    found = []
    for layer in range(positive.shape[1]):
        rows = [side[layer].numpy() for side in (*positive, *negative)]
        labels = [0] * len(positive) + [1] * len(negative)
        fitted = LogisticRegression(max_iter=1000, tol=1e-8).fit(rows, labels)
        found.append(Probe(fitted.coef_[0], float(fitted.intercept_[0])))
    return found


def nearest_inside(h: np.ndarray[Any, Any], probe: Probe, alpha: float) -> np.ndarray[Any, Any]:
    """The nearest point at which the probe gives a probability of at most alpha."""
    logit, most = float(probe.weight @ h) + probe.bias, math.log(alpha / (1 - alpha))
    if logit <= most:
        return h
    length = math.sqrt(sum(w * w for w in probe.weight))
    return h - (logit - most) / length * (probe.weight / length)


def mera_change(probes: list[Probe], given: Given) -> Change:
    edited = range(LAYERS) if given.get("layers") == "all" else [given["layer"]]

    def change(layer: int, values: Tensor) -> Tensor:
        if layer not in edited:
            return values
        rows = [nearest_inside(h, probes[layer], given["alpha"]) for h in values.double().numpy()]
        return torch.from_numpy(np.stack(rows)).to(values.dtype)

    return change


def assert_probes(tensors: Mapping[str, Tensor], expected: list[Probe]) -> None:
    for layer, probe in enumerate(expected):
        assert tensors["weight"][layer].numpy() == pytest.approx(probe.weight, abs=1e-4)
        assert float(tensors["bias"][layer]) == pytest.approx(probe.bias, abs=1e-4)
        assert np.linalg.norm(probe.weight) > 0.1


ALPHAS = [n / 10 for n in range(1, 10)]
EQUATIONS = Equations(
    given={"n_pairs": 12, "layer": 1, "alpha": 1e-5},
    where=lambda given: "residual",
    measure=probes_of,
    change=mera_change,
    places=lambda probes, given: None,
    assert_measured=assert_probes,
    served=[{"layer": 2, "alpha": 1e-4}, {"scope": "prompt"}],
    chosen=({"n_tune": 8}, [(n, alpha) for n in range(LAYERS) for alpha in ALPHAS]),
    narrowed=[
        ({"layer": 2, "alpha": "auto"}, [(2, alpha) for alpha in ALPHAS]),
        ({"alpha": 0.25}, [(layer, 0.25) for layer in range(LAYERS)]),
    ],
    usual=[
        ({"layer": 2, "alpha": 0.2}, (2, 0.2)),
        ({"layer": 2}, (2, 0.5)),
    ],
    cases=[{"layer": 0}, {"layer": 2}, {"scope": "prompt"}],
    generated=[{}, {"scope": "prompt"}],
)
