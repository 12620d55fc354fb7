"""ITI, written out (Li et al. 2023), and its gates (FASB, of the prompt alone; ACT's manner)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from helpers.equations.contract import (
    HEADS,
    LAYERS,
    Equations,
    Given,
    Places,
    part_of,
)
from helpers.loops import Change, Gated, adding


class Head(NamedTuple):
    """What ITI knows of one head: its probe's accuracy; of each direction θ, and σ along it.

    The probe takes x for true with probability 1 / (1 + exp(−(weight · x + bias))).
    """

    accuracy: float
    directions: dict[str, tuple[np.ndarray[Any, Any], float]]
    weight: np.ndarray[Any, Any]
    bias: float


Heads = dict[tuple[int, int], Head]
"""By layer and head."""


def heads_of(true: Tensor, false: Tensor, given: Given) -> Heads:
    """Sections 3.1 and 3.2 of the paper, one head after another.

    Args:
        true, false: ``[pairs, layers, width]``.
        given: arguments of the run.
    """
    count, seed = len(true), given.get("seed", 0)
    questions = np.random.RandomState(seed).permutation(count).tolist()
    training = questions[: round(0.8 * count)]
    found = {}
    for layer in range(LAYERS):
        for head in range(HEADS):
            part = part_of(layer, head)
            rows: dict[bool, list[Any]] = {True: [], False: []}
            labels: dict[bool, list[int]] = {True: [], False: []}
            for question in range(count):
                for label, side in ((1, true), (0, false)):
                    rows[question in training].append(side[question, layer, part].numpy())
                    labels[question in training].append(label)
            probe = LogisticRegression(max_iter=1000).fit(rows[True], labels[True])
            right = probe.predict(rows[False]) == labels[False]
            truths = [side[layer, part].numpy() for side in true]
            lies = [side[layer, part].numpy() for side in false]
            difference = sum(truths) / count - sum(lies) / count
            directions = {}
            for name, raw in (("mass_mean", difference), ("probe", probe.coef_[0])):
                theta = raw / math.sqrt(sum(raw * raw))
                projections = [float(sum(theta * x)) for x in [*truths, *lies]]
                mean = sum(projections) / len(projections)
                variance = sum((p - mean) ** 2 for p in projections) / len(projections)
                directions[name] = theta, math.sqrt(variance)
            found[layer, head] = Head(
                float(right.mean()), directions, probe.coef_[0], float(probe.intercept_[0])
            )
    return found


def iti_places(heads: Heads, given: Given) -> Places:
    """The K heads with the best probes."""
    best = sorted(heads, key=lambda where: (-heads[where].accuracy, where))
    return set(best[: int(given["top_k"])])


def iti_shift(heads: Heads, top_k: int, alpha: float, direction: str = "mass_mean") -> Tensor:
    """α σ θ in the K heads with the best probes (equation 2), ``[layers, width]``."""
    shift = torch.zeros(LAYERS, max(part_of(n, HEADS - 1).stop for n in range(LAYERS)))
    for layer, head in iti_places(heads, {"top_k": top_k}):
        theta, sigma = heads[layer, head].directions[direction]
        shift[layer, part_of(layer, head)] = torch.from_numpy(alpha * sigma * theta)
    return shift


def truth_of(head: Head, values: Tensor) -> float:
    """How true a probe takes what stands in its head for, ``[head_dim]``."""
    logit = float(head.weight @ values.double().numpy()) + head.bias
    return 1 / (1 + math.exp(-logit))


def iti_change(heads: Heads, given: Given) -> Change | Gated | None:
    """A' = A + g α σ θ: g is 1, or 1 − q of the prompt or 0, or 1 − p of the head at the token."""
    places, direction = iti_places(heads, given), given.get("direction", "mass_mean")
    shift = iti_shift(heads, int(given["top_k"]), given["alpha"], direction)
    gate = given.get("gate", "none")

    def of_prompt(unsteered: Tensor) -> float:
        truths = [truth_of(heads[n, head], unsteered[n, part_of(n, head)]) for n, head in places]
        q = sum(truths) / len(truths)
        return 1 - q if q < given["threshold"] else 0.0

    def of_token(layer: int, values: Tensor) -> Tensor:
        after = values.clone()
        for position in range(len(values)):
            for _, head in [place for place in places if place[0] == layer]:
                part = part_of(layer, head)
                untrue = 1 - truth_of(heads[layer, head], values[position, part])
                after[position, part] += untrue * shift[layer, part]
        return after

    whole = adding(shift)
    assert whole is not None
    if gate == "prompt":
        return Gated(whole, of_prompt)
    return of_token if gate == "self" else whole


def assert_probes(tensors: Mapping[str, Tensor], expected: Heads) -> None:
    assert len({one.accuracy for one in expected.values()}) > 2
    for (layer, head), one in expected.items():
        assert float(tensors["accuracy"][layer, head]) == pytest.approx(one.accuracy)
        for name in ("mass_mean", "probe"):
            theta, sigma = one.directions[name]
            tolerance = 1e-4 if name == "mass_mean" else 2e-3  # how far the fit stops from its end
            own, beyond = tensors[name][layer, head].tensor_split([len(theta)])
            assert own.numpy() == pytest.approx(theta, abs=tolerance)
            assert not beyond.any()
            found = float(tensors[f"{name}_std"][layer, head])
            assert found == pytest.approx(sigma, rel=tolerance * 10)
        weight, beyond = tensors["weight"][layer, head].tensor_split([len(one.weight)])
        assert weight.numpy() == pytest.approx(one.weight, abs=5e-3)
        assert not beyond.any()
        assert float(tensors["bias"][layer, head]) == pytest.approx(one.bias, abs=5e-3)


GATED: list[dict[str, Any]] = [
    {"gate": "prompt", "threshold": 0.7, "alpha": 12},
    {"gate": "self", "alpha": 9},
]
EQUATIONS = Equations(
    given={"n_pairs": 12, "top_k": 5, "alpha": 3},
    where=lambda given: "head",
    measure=heads_of,
    change=iti_change,
    places=iti_places,
    assert_measured=assert_probes,
    served=[
        {"top_k": 2},
        {"alpha": -4},
        {"direction": "probe"},
        {"scope": "prompt"},
        {"gate": "prompt", "threshold": 1},
        {"gate": "self"},
    ],
    chosen=({"grid": "1/5x-2/3", "n_tune": 10}, [(1, -2.0), (1, 3.0), (5, -2.0), (5, 3.0)]),
    narrowed=[
        ({"top_k": 2, "alpha": "auto"}, [(2, a) for a in (10, 15, 20, 25, 30)]),
        ({"top_k": "auto", "alpha": 2.5, "grid": "1/3x9"}, [(1, 2.5), (3, 2.5)]),
    ],
    usual=[
        ({"top_k": 2, "alpha": 4}, (2, 4)),
        ({"top_k": 2}, (2, 15)),
    ],
    cases=[{}, {"scope": "prompt"}, *GATED],
    generated=[{}, {"scope": "prompt"}, GATED[0]],
)
