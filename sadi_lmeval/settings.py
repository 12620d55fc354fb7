"""Settings of a method, where it steers and how strongly, and the grids they are chosen from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from sadi_lmeval.errors import UserError


class Parameters(NamedTuple):
    """What a method calls the two numbers of a setting.

    Attributes:
        where: ``top_k``, how many entries over all layers together, or ``layer``, which one.
        strength: ``delta``, ``alpha`` or ``multiplier``.
    """

    where: str
    strength: str

    @property
    def least(self) -> int:
        """The smallest ``where``."""
        return 0 if self.where == "layer" else 1


class Setting(NamedTuple):
    """Where, and how strongly; a strength of 0 is the unsteered model."""

    where: int
    strength: float

    def size(self, parameters: Parameters) -> float:
        """How large an edit it is: of equally good settings the smallest is taken."""
        entries = 1 if parameters.where == "layer" else self.where
        return entries * abs(self.strength)

    def named(self, parameters: Parameters) -> dict[str, Any]:
        """For files and messages: the numbers under the method's own names."""
        return dict(zip(parameters, self, strict=True))


UNSTEERED = Setting(0, 0.0)


class Grid(NamedTuple):
    """All combinations of some ``where`` and some strengths."""

    where: tuple[int, ...]
    strength: tuple[float, ...]

    @property
    def settings(self) -> list[Setting]:
        """Without those that steer nothing: the unsteered model is always compared with."""
        return [Setting(w, s) for w in self.where for s in self.strength if s]

    def thinned(self, most: int) -> Grid:
        """At most ``most`` settings of it, evenly spread over both axes, their ends included.

        The same number of settings for every method is what makes a comparison fair.
        """
        steering = tuple(strength for strength in self.strength if strength)
        wheres, strengths = len(self.where), len(steering)
        if wheres * strengths <= most:
            return self
        sizes = [(a, min(strengths, most // a)) for a in range(1, min(wheres, most) + 1)]

        def worth(size: tuple[int, int]) -> tuple[bool, int, float]:
            """Both axes are there; then the most settings; then about their own proportion."""
            a, b = size
            both = a > 1 or wheres == 1, b > 1 or strengths == 1
            return all(both), a * b, -abs(math.log(a * strengths / (b * wheres)))

        a, b = max(sizes, key=worth)
        return Grid(_spread(self.where, a), _spread(steering, b))


def _spread(values: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """``count`` of some values, evenly spaced; of one, the middle."""
    if count == 1:
        return (values[len(values) // 2],)
    return tuple(values[round(i * (len(values) - 1) / (count - 1))] for i in range(count))


_STEPS = tuple(range(5, 81, 5))


def _strengths(*strengths: int) -> tuple[float, ...]:
    return tuple(float(strength - 1) for strength in strengths)


SADI_GRIDS: dict[str, Grid] = {
    "head": Grid((1, 2, 4, 6, 8, 10), _strengths(*_STEPS)),
    "neuron": Grid((3, 5, 10, 30, 50, 100, 200, 300, 400, 500), _strengths(10, 20, 30, 50, 70, 90)),
    "hidden": Grid((1, *range(2, 21, 2)), _strengths(*_STEPS)),
}
"""The grids of SADI's reference code by element; its strength is 1 + delta."""
ITI_GRID = Grid((48, 64, 80, 96), (10.0, 15.0, 20.0, 25.0, 30.0))
"""The historic grid of ITI (Li et al. 2023, figure 6), for models of about 1,000 heads."""
CAA_STRENGTHS = (0.5, 1.0, 1.5, 2.0)
"""Multipliers of CAA; the authors go to 2 (Rimsky et al. 2023, section 4). Every layer is tried."""


def read_grid(given: object, parameters: Parameters) -> Grid:
    """A grid as the user writes it: ``1/2/4x4/9`` (where, then strength), or a mapping.

    Raises:
        UserError: naming every fault at once.
    """
    if isinstance(given, dict):
        unknown = [str(key) for key in given if key not in parameters]
        if unknown or len(given) != 2:
            raise UserError(
                f"grid={given}: must map {' and '.join(parameters)} to lists of numbers"
            )
        where, strength = (_listed(given[key]) for key in parameters)
    else:
        left, by, right = str(given).lower().partition("x")
        if not by:
            names = [_short(name) for name in parameters]
            raise UserError(
                f"grid={given}: write {' and '.join(names)} as 1/2/4x4/9 ({names[0]} before the x)"
            )
        where, strength = left.split("/"), right.split("/")
    return grid_of(where, strength, f"grid={given}", parameters)


def grid_of(
    where: Sequence[Any], strength: Sequence[Any], source: str, parameters: Parameters
) -> Grid:
    """Check the numbers of a grid.

    Args:
        where, strength: numbers, or how they are written.
        source: for messages: what the user gave.
        parameters: what the method calls them.

    Raises:
        UserError: naming every fault at once.
    """
    first, second = (_short(name) for name in parameters)
    faults: list[str] = []
    whole: list[int] = []
    for value in where:
        number = _number(value)
        if number is None or number < parameters.least or number != int(number):
            faults.append(
                f"{first} must be a whole number of at least {parameters.least}, not {value!r}"
            )
        else:
            whole.append(int(number))
    finite: list[float] = []
    for value in strength:
        number = _number(value)
        if number is None:
            faults.append(f"{second} must be a finite number, not {value!r}")
        else:
            finite.append(number)
    faults += [
        f"no {name}" for name, values in ((first, where), (second, strength)) if not len(values)
    ]
    if faults:
        raise UserError(f"{source}: {'; '.join(faults)}")
    return Grid(tuple(dict.fromkeys(whole)), tuple(dict.fromkeys(finite)))


def _short(name: str) -> str:
    return "K" if name == "top_k" else name


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
