"""Each method's equations written out: what it measures of pairs, and what it makes of activations.

Nothing of the package's methods is used: plain loops over the activations of plain passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from helpers.loops import Change, Where, adding
from sadi_lmeval.types import Scope

LAYERS, HEADS, HEAD_DIM, WIDTH = 3, 4, 8, 32
"""Of the tiny model."""

Numbers = tuple[float, ...]
"""Of a setting."""
Places = set[tuple[int, int]]
"""(layer, head)."""


class Equations(NamedTuple):
    """A method, written out.

    Attributes:
        given: arguments of a run that steers noticeably.
        measure: takes the activations of the right and of the wrong texts,
            ``[pairs, layers, width]`` each, in double precision; gives whatever the rest takes.
        change: what a setting does to activations.
        places: the heads that a setting edits; None: whole layers.
        assert_measured: compares a fit's tensors with what was measured here.
    """

    where: Where
    scope: Scope
    given: dict[str, Any]
    measure: Callable[[Tensor, Tensor], Any]
    change: Callable[[Any, Numbers], Change | None]
    places: Callable[[Any, Numbers], Places | None]
    assert_measured: Callable[[Mapping[str, Tensor], Any], None]


# ------------------------------------------------------------------ mean differences


def mean_difference(positive: Tensor, negative: Tensor) -> Tensor:
    """D of SADI (equation 3) and v of CAA (section 3), ``[layers, width]``."""
    total = torch.zeros(LAYERS, WIDTH).double()
    for one, other in zip(positive, negative, strict=True):
        total += one - other
    return (total / len(positive)).float()


def assert_difference(tensors: Mapping[str, Tensor], expected: Tensor) -> None:
    assert (expected.norm(dim=1) > 0.5).all()
    torch.testing.assert_close(tensors["difference"].flatten(1), expected, atol=1e-4, rtol=1e-4)


def caa_shift(vector: Tensor, layer: int, multiplier: float) -> Tensor:
    """What is added to the residual stream, ``[layers, width]``."""
    shift = torch.zeros(LAYERS, WIDTH)
    shift[layer] = multiplier * vector[layer]
    return shift


def sadi_places(difference: Tensor, numbers: Numbers) -> Places:
    """The K heads of the largest mean (section 3.2)."""
    means = {
        (layer, head): float(difference[layer, part_of(head)].mean())
        for layer in range(LAYERS)
        for head in range(HEADS)
    }
    return set(sorted(means, key=lambda place: -means[place])[: int(numbers[0])])


def sadi_change(difference: Tensor, numbers: Numbers) -> Change:
    """A' = A + δ (A ⊙ M) (equation 5)."""
    factor = torch.ones(LAYERS, WIDTH)
    for layer, head in sadi_places(difference, numbers):
        factor[layer, part_of(head)] += numbers[1]
    return lambda layer, values: values * factor[layer]


def part_of(head: int) -> slice:
    return slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)


# ------------------------------------------------------------------ ITI


class Head(NamedTuple):
    """What ITI knows of one head: its probe's accuracy; of each direction θ, and σ along it."""

    accuracy: float
    directions: dict[str, tuple[np.ndarray[Any, Any], float]]


Heads = dict[tuple[int, int], Head]
"""By layer and head."""


def heads_of(true: Tensor, false: Tensor, seed: int = 0) -> Heads:
    """Sections 3.1 and 3.2 of the paper, one head after another.

    Args:
        true, false: ``[pairs, layers, width]``.
    """
    count = len(true)
    questions = np.random.RandomState(seed).permutation(count).tolist()
    training = questions[: round(0.8 * count)]
    found = {}
    for layer in range(LAYERS):
        for head in range(HEADS):
            part = part_of(head)
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
            found[layer, head] = Head(float(right.mean()), directions)
    return found


def iti_places(heads: Heads, numbers: Numbers) -> Places:
    """The K heads with the best probes."""
    return set(sorted(heads, key=lambda where: (-heads[where].accuracy, where))[: int(numbers[0])])


def iti_shift(heads: Heads, top_k: int, alpha: float, direction: str = "mass_mean") -> Tensor:
    """α σ θ in the K heads with the best probes (equation 2), ``[layers, width]``."""
    shift = torch.zeros(LAYERS, WIDTH)
    for layer, head in iti_places(heads, (top_k, alpha)):
        theta, sigma = heads[layer, head].directions[direction]
        shift[layer, part_of(head)] = torch.from_numpy(alpha * sigma * theta)
    return shift


def assert_probes(tensors: Mapping[str, Tensor], expected: Heads) -> None:
    assert len({one.accuracy for one in expected.values()}) > 2
    for (layer, head), one in expected.items():
        assert float(tensors["accuracy"][layer, head]) == pytest.approx(one.accuracy)
        for name in ("mass_mean", "probe"):
            theta, sigma = one.directions[name]
            tolerance = 1e-4 if name == "mass_mean" else 2e-3  # how far the fit stops from its end
            assert tensors[name][layer, head].numpy() == pytest.approx(theta, abs=tolerance)
            found = float(tensors[f"{name}_std"][layer, head])
            assert found == pytest.approx(sigma, rel=tolerance * 10)


# ------------------------------------------------------------------ all of them


EQUATIONS: dict[str, Equations] = {
    "sadi": Equations(
        "head",
        "prompt",
        {"n_pairs": 12, "top_k": 5, "delta": 3},
        mean_difference,
        sadi_change,
        sadi_places,
        assert_difference,
    ),
    "iti": Equations(
        "head",
        "onwards",
        {"n_pairs": 12, "top_k": 5, "alpha": 3},
        heads_of,
        lambda heads, numbers: adding(iti_shift(heads, int(numbers[0]), numbers[1])),
        iti_places,
        assert_probes,
    ),
    "caa": Equations(
        "residual",
        "onwards",
        {"n_pairs": 12, "layer": 1, "multiplier": 1},
        mean_difference,
        lambda vector, numbers: adding(caa_shift(vector, int(numbers[0]), numbers[1])),
        lambda vector, numbers: None,
        assert_difference,
    ),
}
"""By the method's name."""
