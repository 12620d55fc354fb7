"""SADI, written out (Wang et al., ICLR 2025)."""

from __future__ import annotations

import torch
from torch import Tensor

from helpers.equations.contract import (
    HEADS,
    LAYERS,
    Equations,
    Given,
    Places,
    part_of,
)
from helpers.equations.mean_difference import assert_difference, mean_difference
from helpers.loops import Change


def sadi_places(difference: Tensor, given: Given) -> Places:
    """The K heads of the largest mean (section 3.2)."""
    means = {
        (layer, head): float(difference[layer, part_of(layer, head)].mean())
        for layer in range(LAYERS)
        for head in range(HEADS)
    }
    return set(sorted(means, key=lambda place: -means[place])[: int(given["top_k"])])


def sadi_change(difference: Tensor, given: Given) -> Change:
    """A' = A + δ (A ⊙ M) (equation 5)."""
    factor = torch.ones_like(difference)
    for layer, head in sadi_places(difference, given):
        factor[layer, part_of(layer, head)] += given["delta"]
    return lambda layer, values: values * factor[layer, : values.shape[-1]]


EQUATIONS = Equations(
    given={"n_pairs": 12, "top_k": 5, "delta": 3},
    where=lambda given: "head",
    measure=mean_difference,
    change=sadi_change,
    places=sadi_places,
    assert_measured=assert_difference,
    served=[{"top_k": 2}, {"delta": -4}, {"selection": "bottom"}, {"steering": "fixed"}],
    chosen=({"grid": "1/5x-2/3", "n_tune": 10}, [(1, -2.0), (1, 3.0), (5, -2.0), (5, 3.0)]),
    narrowed=[
        ({"top_k": 2, "delta": "auto", "grid": "9x1/4"}, [(2, 1), (2, 4)]),
        ({"top_k": "auto", "delta": 2.5, "grid": "1/3x9"}, [(1, 2.5), (3, 2.5)]),
    ],
    usual=[
        ({"top_k": 2, "delta": 4}, (2, 4)),
        ({"top_k": 2}, (2, 9)),
        ({"delta": 4}, (6, 4)),
    ],
    scope="prompt",
)
