"""Clamping and directional ablation, written out (Arditi et al. 2024, equation 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from helpers.equations.contract import LAYERS, Equations, Given
from helpers.loops import Change


class Means(NamedTuple):
    """Of the texts of either side, ``[layers, width]`` in double precision."""

    positive: Tensor
    negative: Tensor


def side_means(positive: Tensor, negative: Tensor, given: Given) -> Means:
    totals = [torch.zeros_like(positive[0]) for _ in range(2)]
    for one, other in zip(positive, negative, strict=True):
        totals[0] += one
        totals[1] += other
    return Means(*(total / len(positive) for total in totals))


def clamping_change(means: Means, given: Given) -> Change:
    """One row after another: from where it lies along u, a share of the way to the target."""
    chosen, share = given["layer"], given["share"]
    raw = means.positive[chosen] - means.negative[chosen]
    length = sum(float(x) ** 2 for x in raw) ** 0.5
    u = [float(x) / length for x in raw]

    def along(values: Tensor) -> float:
        return math.fsum(float(x) * y for x, y in zip(values, u, strict=True))

    def change(layer: int, values: Tensor) -> Tensor:
        if given.get("blocks", "one") == "one" and layer != chosen:
            return values
        target = 0.0
        if given.get("to", "positive") == "positive":
            target = along(means.positive[layer])
        rows = []
        for row in values:
            way = share * (target - along(row))
            rows.append(torch.tensor([float(x) + way * y for x, y in zip(row, u, strict=True)]))
        return torch.stack(rows) if rows else values

    return change


def assert_means(tensors: Mapping[str, Tensor], expected: Means) -> None:
    for name, one in expected._asdict().items():
        assert (one.norm(dim=1) > 0.5).all()
        found = tensors[name].flatten(1)
        torch.testing.assert_close(found, one.float(), atol=1e-4, rtol=1e-4)


EQUATIONS = Equations(
    given={"n_pairs": 12, "layer": 1, "share": 1},
    where=lambda given: "residual",
    measure=side_means,
    change=clamping_change,
    places=lambda means, given: None,
    assert_measured=assert_means,
    served=[{"layer": 2, "share": 0.5}, {"to": "zero"}, {"blocks": "all"}, {"scope": "prompt"}],
    chosen=({"n_tune": 8}, [(n, s) for n in range(LAYERS) for s in (0.25, 0.5, 0.75, 1.0)]),
    narrowed=[
        ({"layer": 2, "share": "auto"}, [(2, s) for s in (0.25, 0.5, 0.75, 1.0)]),
        ({"share": 0.3}, [(layer, 0.3) for layer in range(LAYERS)]),
    ],
    usual=[
        ({"layer": 2, "share": 0.5}, (2, 0.5)),
        ({"layer": 2}, (2, 1)),
    ],
    cases=[
        {},
        {"to": "zero"},
        {"blocks": "all", "share": 0.5},
        {"to": "zero", "blocks": "all", "layer": 2},
        {"scope": "prompt"},
    ],
    generated=[{}, {"to": "zero", "blocks": "all"}, {"scope": "prompt"}],
)
