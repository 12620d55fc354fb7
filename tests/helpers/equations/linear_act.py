"""Linear-AcT, written out (arXiv 2410.23054)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from helpers.equations.contract import LAYERS, WIDTH, Equations, Given
from helpers.loops import Change


class Sides(NamedTuple):
    """Of one coordinate: what transports are made of.

    Attributes:
        source, target: the wrong and the right texts' mean.
        slopes: ω by the name of the transport.
    """

    source: float
    target: float
    slopes: dict[str, float]


Coordinates = dict[tuple[int, int], Sides]
"""By layer and unit."""


def sides_of(source: list[float], target: list[float]) -> Sides:
    """Sort both, and fit the line through the points (i-th smallest, i-th smallest)."""
    count = len(source)
    a, b = sorted(source), sorted(target)
    m_a, m_b = sum(a) / count, sum(b) / count
    together = sum((x - m_a) * (y - m_b) for x, y in zip(a, b, strict=True))
    spread_a, spread_b = sum((x - m_a) ** 2 for x in a), sum((y - m_b) ** 2 for y in b)
    slopes = {
        "linear": together / spread_a,
        "gaussian": math.sqrt(spread_b / count) / math.sqrt(spread_a / count),
        "mean": 1.0,
    }
    return Sides(m_a, m_b, slopes)


def coordinates_of(positive: Tensor, negative: Tensor, given: Given) -> Coordinates:
    found = {}
    for layer in range(positive.shape[1]):
        for unit in range(positive.shape[2]):
            source, target = negative[:, layer, unit], positive[:, layer, unit]
            found[layer, unit] = sides_of(source.tolist(), target.tolist())
    return found


def linear_act_change(known: Coordinates, given: Given) -> Change:
    """A' = (1 − λ) A + λ (ω A + β), with β = mean(target) − ω mean(source)."""
    transport, share = given.get("transport", "linear"), given["strength"]
    mine = [known[at] for at in sorted(known) if at[0] == given["layer"]]
    omega, beta = torch.ones(len(mine)), torch.zeros(len(mine))
    for unit, one in enumerate(mine):
        omega[unit] = one.slopes[transport]
        beta[unit] = one.target - one.slopes[transport] * one.source

    def change(layer: int, values: Tensor) -> Tensor:
        if layer != given["layer"]:
            return values
        moved: Tensor = (1 - share) * values + share * (omega * values + beta)
        return moved

    return change


def assert_transports(tensors: Mapping[str, Tensor], expected: Coordinates) -> None:
    slopes = [one.slopes["linear"] for one in expected.values()]
    assert min(slopes) < 0.9 < 1.1 < max(slopes)
    for name in ("linear", "gaussian"):
        wanted = torch.tensor([[expected[n, i].slopes[name] for i in range(WIDTH)]
                               for n in range(LAYERS)])  # fmt: skip
        torch.testing.assert_close(tensors[name], wanted, atol=1e-4, rtol=1e-4)
    for at, one in expected.items():
        assert abs(float(tensors["difference"][at]) - (one.target - one.source)) < 1e-4
        assert abs(float(tensors["source_mean"][at]) - one.source) < 1e-4


STRENGTHS = (0.25, 0.5, 0.75, 1.0)
EQUATIONS = Equations(
    given={"n_pairs": 12, "layer": 1, "strength": 1},
    where=lambda given: given.get("hidden_site", "residual"),
    measure=coordinates_of,
    change=linear_act_change,
    places=lambda known, given: None,
    assert_measured=assert_transports,
    served=[
        {"layer": 2, "strength": 0.5},
        {"transport": "gaussian"},
        {"transport": "mean"},
        {"scope": "prompt"},
    ],
    chosen=({"n_tune": 8}, [(n, s) for n in range(LAYERS) for s in STRENGTHS]),
    narrowed=[
        ({"layer": 2, "strength": "auto"}, [(2, s) for s in STRENGTHS]),
        ({"strength": 0.4}, [(layer, 0.4) for layer in range(LAYERS)]),
    ],
    usual=[
        ({"layer": 2, "strength": 0.5}, (2, 0.5)),
        ({"layer": 2}, (2, 1)),
    ],
    cases=[
        {},
        {"transport": "gaussian", "layer": 2, "strength": 0.75, "scope": "prompt"},
        {"hidden_site": "mlp"},
    ],
    generated=[{}, {"transport": "gaussian", "hidden_site": "mlp", "scope": "prompt"}],
)
