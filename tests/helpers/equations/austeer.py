"""AUSteer, written out (arXiv 2602.04428)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from helpers.equations.contract import Equations, Given, Places, as_passes_have, head_dim
from helpers.loops import Change, Where


class Signs(NamedTuple):
    """Of one dimension: in how many pairs the right text has the larger and the smaller value."""

    up: int
    down: int


Dimensions = dict[tuple[int, int], Signs]
"""By layer and dimension."""


def where_of(given: Given) -> Where:
    if given.get("element", "head") == "head":
        return "head"
    return "residual" if given.get("hidden_site") == "residual" else "mlp"


def signs_of(positive: Tensor, negative: Tensor, given: Given) -> tuple[Dimensions, int]:
    """Every dimension's, and the number of pairs."""
    found = {}
    for layer in range(positive.shape[1]):
        for dimension in range(positive.shape[2]):
            differences = [
                float(one[layer, dimension] - other[layer, dimension])
                for one, other in zip(positive, negative, strict=True)
            ]
            found[layer, dimension] = Signs(
                sum(d > 0 for d in differences), sum(d < 0 for d in differences)
            )
    return found, len(positive)


def most_consistent(signs: Dimensions, top_k: int) -> list[tuple[int, int]]:
    """The K dimensions whose pairs agree most; of equal ones the earlier layer and dimension."""
    return sorted(signs, key=lambda at: (-max(signs[at]), at))[:top_k]


def austeer_gain(
    known: tuple[Dimensions, int], top_k: int, alpha: float
) -> dict[tuple[int, int], float]:
    """α s r of the K dimensions."""
    signs, pairs = known
    gain = {}
    for at in most_consistent(signs, top_k):
        up, down = signs[at]
        sign = -1 if down > up else 1
        gain[at] = alpha * sign * max(up, down) / pairs
    return gain


def austeer_change(known: tuple[Dimensions, int], given: Given) -> Change:
    """A' = A + α s r A."""
    layer, dimension = max(known[0])
    factor = torch.ones(layer + 1, dimension + 1)
    for at, gain in austeer_gain(known, int(given["top_k"]), given["alpha"]).items():
        factor[at] += gain
    return lambda layer, values: values * factor[layer, : values.shape[-1]]


def austeer_places(known: tuple[Dimensions, int], given: Given) -> Places:
    chosen = most_consistent(known[0], int(given["top_k"]))
    if where_of(given) == "head":
        return {(layer, *divmod(dimension, head_dim(layer))) for layer, dimension in chosen}
    return set(chosen)


def assert_counted(tensors: Mapping[str, Tensor], expected: tuple[Dimensions, int]) -> None:
    signs, pairs = expected
    assert len({max(one) for one in signs.values()}) > 3
    assert {one.up > one.down for one in signs.values()} == {True, False}
    up, down = as_passes_have(tensors["up"]), as_passes_have(tensors["down"])
    found = {at: Signs(int(up[at]), int(down[at])) for at in signs}
    assert found == signs
    assert tensors["pairs"].tolist() == [pairs]


EQUATIONS = Equations(
    given={"n_pairs": 12, "top_k": 9, "alpha": 8},
    where=where_of,
    measure=signs_of,
    change=austeer_change,
    places=austeer_places,
    assert_measured=assert_counted,
    served=[{"top_k": 2}, {"alpha": -4}, {"scope": "prompt"}],
    chosen=({"grid": "1/9x-6/8", "n_tune": 10}, [(1, -6.0), (1, 8.0), (9, -6.0), (9, 8.0)]),
    narrowed=[
        ({"top_k": 2, "alpha": "auto"}, [(2, a) for a in (2, 5, 8, 10, 15, 20, 50, 100)]),
        ({"top_k": "auto", "alpha": 2.5, "grid": "1/96x9"}, [(1, 2.5), (96, 2.5)]),
    ],
    usual=[
        ({"top_k": 2, "alpha": 4}, (2, 4)),
        ({"top_k": 2}, (2, 15)),
        ({"alpha": 4}, (96, 4)),
    ],
    cases=[
        {},
        {"element": "hidden", "scope": "prompt"},
        {"element": "hidden", "hidden_site": "residual", "alpha": -8},
    ],
    generated=[{}, {"element": "hidden", "scope": "prompt"}],
)
