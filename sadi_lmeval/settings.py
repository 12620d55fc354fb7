"""Settings of SADI, K and delta, and the grids that they are chosen from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from sadi_lmeval.errors import UserError


class Setting(NamedTuple):
    """K entries steered with strength delta; K = 0 is the unsteered model."""

    top_k: int
    delta: float

    @property
    def size(self) -> float:
        """How large an edit it is: of equally good settings the smallest is taken."""
        return self.top_k * abs(self.delta)


UNSTEERED = Setting(0, 0.0)


class Grid(NamedTuple):
    """All combinations of some K and some delta."""

    top_k: tuple[int, ...]
    delta: tuple[float, ...]

    @property
    def settings(self) -> list[Setting]:
        """Without those that steer nothing: the unsteered model is always compared with."""
        return [Setting(k, d) for k in self.top_k for d in self.delta if d]


_STEPS = tuple(range(5, 81, 5))


def _strengths(*strengths: int) -> tuple[float, ...]:
    return tuple(float(strength - 1) for strength in strengths)


REFERENCE: dict[str, Grid] = {
    "head": Grid((1, 2, 4, 6, 8, 10), _strengths(*_STEPS)),
    "neuron": Grid((3, 5, 10, 30, 50, 100, 200, 300, 400, 500), _strengths(10, 20, 30, 50, 70, 90)),
    "hidden": Grid((1, *range(2, 21, 2)), _strengths(*_STEPS)),
}
"""The grids of the reference code by element; its strength is 1 + delta."""


def read_grid(given: object) -> Grid:
    """A grid as the user writes it: ``1/2/4x4/9`` (K, then delta), or a mapping.

    Raises:
        UserError: naming every fault at once.
    """
    if isinstance(given, dict):
        unknown = [str(key) for key in given if key not in ("top_k", "delta")]
        if unknown or len(given) != 2:
            raise UserError(f"grid={given}: must map top_k and delta to lists of numbers")
        top_k, delta = (_listed(given[key]) for key in ("top_k", "delta"))
    else:
        left, by, right = str(given).lower().partition("x")
        if not by:
            raise UserError(f"grid={given}: write K and delta as 1/2/4x4/9 (K before the x)")
        top_k, delta = left.split("/"), right.split("/")
    return grid_of(top_k, delta, f"grid={given}")


def grid_of(top_k: Sequence[Any], delta: Sequence[Any], source: str) -> Grid:
    """Check the numbers of a grid.

    Args:
        top_k, delta: numbers, or how they are written.
        source: for messages: what the user gave.

    Raises:
        UserError: naming every fault at once.
    """
    faults: list[str] = []
    whole: list[int] = []
    for value in top_k:
        number = _number(value)
        if number is None or number < 1 or number != int(number):
            faults.append(f"K must be a whole number of at least 1, not {value!r}")
        else:
            whole.append(int(number))
    finite: list[float] = []
    for value in delta:
        number = _number(value)
        if number is None:
            faults.append(f"delta must be a finite number, not {value!r}")
        else:
            finite.append(number)
    faults += [f"no {name}" for name, values in (("K", top_k), ("delta", delta)) if not len(values)]
    if faults:
        raise UserError(f"{source}: {'; '.join(faults)}")
    return Grid(tuple(dict.fromkeys(whole)), tuple(dict.fromkeys(finite)))


def _listed(value: object) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool):
        return None
    try:
        number = float(str(value).strip())
    except ValueError:
        return None
    return number if math.isfinite(number) else None
