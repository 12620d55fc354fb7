"""CAA, written out (Rimsky et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from helpers.equations.contract import LAYERS, WIDTH, Equations
from helpers.equations.mean_difference import assert_difference, mean_difference
from helpers.loops import adding


def caa_shift(vector: Tensor, layer: int, multiplier: float) -> Tensor:
    """What is added to the residual stream, ``[layers, width]``."""
    shift = torch.zeros(LAYERS, WIDTH)
    shift[layer] = multiplier * vector[layer]
    return shift


EQUATIONS = Equations(
    given={"n_pairs": 12, "layer": 1, "multiplier": 1},
    where=lambda given: "residual",
    measure=mean_difference,
    change=lambda v, given: adding(caa_shift(v, given["layer"], given["multiplier"])),
    places=lambda v, given: None,
    assert_measured=assert_difference,
    served=[{"layer": 2, "multiplier": -2}, {"scope": "prompt"}],
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
    ],
    generated=[
        {"layer": 0, "multiplier": 1.5},
        {"layer": 2, "multiplier": 1.5},
        {"scope": "prompt"},
    ],
)
