"""Settings of a method: the numbers that are chosen, their axes, and the space they come from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

from sadi_lmeval.errors import UserError
from sadi_lmeval.types import Size


@dataclass(frozen=True)
class Axis:
    """One of the numbers of a setting.

    Attributes:
        name: of the model argument, and in every file.
        doc: one line for the table of arguments.
        whole: whether it is a whole number.
        least, most: the smallest and the largest value, both allowed; None: no bound.
        counts: what a whole number counts, which bounds it by the model's size: ``layer``, the
            index of a decoder block; ``entries``, of all layers together (K); ``activations``,
            single activations of all layers together.
        strength: whether 0 means the unsteered model.
        only: an argument of the method, and the value of it with which alone the axis is there;
            None: with all values of all arguments.
    """

    name: str
    doc: str = ""
    whole: bool = False
    least: float | None = None
    most: float | None = None
    counts: Literal["layer", "entries", "activations"] | None = None
    strength: bool = False
    only: tuple[str, str] | None = None

    @property
    def short(self) -> str:
        """The name in a table or a message about a search space."""
        return "K" if self.name == "top_k" else self.name

    @property
    def allowed(self) -> str:
        """What values are allowed, in words."""
        kind = "a whole number" if self.whole else "a finite number"
        bounds = [f"of at least {self.least:g}"] if self.least is not None else []
        bounds += [f"of at most {self.most:g}"] if self.most is not None else []
        return " ".join([kind, " and ".join(bounds)]).strip()

    def read(self, value: object) -> float | None:
        """Read the number, whole if the axis is; None where it is not allowed."""
        number = _number(value)
        if (
            number is None
            or (self.whole and number != int(number))
            or (self.least is not None and number < self.least)
            or (self.most is not None and number > self.most)
        ):
            return None
        return int(number) if self.whole else number

    def bound(self, size: Size) -> int | None:
        """Give the largest value that a model of a size has; None where nothing bounds it."""
        if self.counts == "layer":
            return size.layers - 1
        if self.counts == "entries":
            return size.layers * size.entries
        if self.counts == "activations" and size.width is not None:
            return size.activations or size.layers * size.width
        return None


class Setting(tuple[float, ...]):
    """The numbers of a setting, in the order of the method's axes."""

    __slots__ = ()

    def __new__(cls, *numbers: float) -> Setting:
        return super().__new__(cls, numbers)

    def __getnewargs__(self) -> tuple[float, ...]:
        return tuple(self)


class Axes(tuple[Axis, ...]):
    """The axes of a method's settings, one to four.

    As an attribute of a method's class they are all that its settings may have; as one of a method
    with its arguments, those that these leave (see :attr:`Axis.only`).
    """

    __slots__ = ()

    def __new__(cls, *axes: Axis) -> Axes:
        return super().__new__(cls, axes)

    def __getnewargs__(self) -> tuple[Axis, ...]:
        return tuple(self)

    def __get__(self, method: object | None, kind: type | None = None) -> Axes:
        if method is None or not any(axis.only for axis in self):
            return self
        return Axes(*(a for a in self if a.only is None or getattr(method, a.only[0]) == a.only[1]))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self)

    @property
    def unsteered(self) -> Setting:
        """The unsteered model, as a setting: every number is 0, also where the axis allows none."""
        return Setting(*(0 if axis.whole else 0.0 for axis in self))

    def steers(self, setting: Setting) -> bool:
        """Return whether a setting is not the unsteered model; with a strength of 0 it is."""
        if setting == self.unsteered:
            return False
        strengths = [n for axis, n in zip(self, setting, strict=True) if axis.strength]
        return all(strengths)

    def named(self, setting: Setting) -> dict[str, Any]:
        """Give the numbers under the method's own names, for files and messages."""
        return dict(zip(self.names, setting, strict=True))

    def check(self, values: Mapping[str, float], size: Size, element: str) -> None:
        """Refuse to steer more entries than a model has, or a layer that it has not.

        Args:
            values: the largest value of each axis that is to be checked.
            size: of the model's site.
            element: of that site, for the message.

        Raises:
            UserError: naming both numbers.
        """
        for axis in self:
            most = axis.bound(size)
            value = values.get(axis.name)
            if most is None or value is None or value <= most:
                continue
            if axis.counts == "layer":
                raise UserError(f"{axis.name}={value}: this model has layers 0 to {most}")
            each = f"{size.entries if axis.counts == 'entries' else size.width}"
            if axis.counts == "activations" and size.activations is not None:
                each = f"up to {each}"
            raise UserError(
                f"{axis.name}={value}: this model has {most} {axis.counts} of element {element} "
                f"({size.layers} layers of {each})"
            )


@dataclass(frozen=True)
class SearchSpace:
    """All combinations of some values of each axis.

    Attributes:
        axes: of the method.
        values: of each axis, in order.
    """

    axes: Axes
    values: tuple[tuple[float, ...], ...]

    @property
    def settings(self) -> list[Setting]:
        """Every setting that steers: the unsteered model is always compared with."""
        every = (Setting(*numbers) for numbers in itertools.product(*self.values))
        return [setting for setting in every if self.axes.steers(setting)]

    def with_values(self, name: str, *values: float) -> SearchSpace:
        """Give the space with other values of an axis."""
        place = self.axes.names.index(name)
        return replace(self, values=(*self.values[:place], values, *self.values[place + 1 :]))

    def within(self, size: Size | None) -> SearchSpace:
        """Give the space without the counts that go beyond a model; if all do, with the largest."""
        space = self
        for axis, values in zip(self.axes, self.values, strict=True):
            most = None if size is None else axis.bound(size)
            if most is not None:
                kept = [value for value in values if value <= most]
                space = space.with_values(axis.name, *(kept or [most]))
        return space

    def largest(self) -> dict[str, float]:
        """Give the largest value of each axis."""
        return {a.name: max(v) for a, v in zip(self.axes, self.values, strict=True)}

    def thinned(self, most: int) -> SearchSpace:
        """Keep at most ``most`` settings of it, evenly spread over all axes, their ends included.

        The same number of settings for every method is what makes a comparison fair.
        """
        steering = [
            tuple(v for v in values if v) if axis.strength else values
            for axis, values in zip(self.axes, self.values, strict=True)
        ]
        lengths = [len(values) for values in steering]
        if math.prod(lengths) <= most:
            return self

        def worth(sizes: Sequence[int]) -> tuple[bool, int, float]:
            """Prefer all axes there; then the most settings; then about their own proportion."""
            there = [n > 1 or length == 1 for n, length in zip(sizes, lengths, strict=True)]
            shares = [math.log(n / length) for n, length in zip(sizes, lengths, strict=True)]
            return all(there), math.prod(sizes), min(shares) - max(shares)

        sizes = max(_sizes(lengths, most), key=worth)
        kept = zip(steering, sizes, strict=True)
        return replace(self, values=tuple(_spread(values, count) for values, count in kept))


def _sizes(lengths: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """List how many values of each axis may be kept for there to be at most ``most`` settings."""
    if len(lengths) == 1:
        return [(min(lengths[0], most),)]
    return [
        (count, *rest)
        for count in range(1, min(lengths[0], most) + 1)
        for rest in _sizes(lengths[1:], most // count)
    ]


def _spread(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    """Take ``count`` of some values, evenly spaced; of one, the middle."""
    if count == 1:
        return (values[len(values) // 2],)
    return tuple(values[round(i * (len(values) - 1) / (count - 1))] for i in range(count))


def read_search_space(given: object, axes: Axes) -> SearchSpace:
    """Read a search space as users write it.

    Args:
        given: ``1/2/4x4/9``, the values of each axis in the order of the axes;
            ``top_k:1/2/4;delta:4/9``, by name; or a mapping of names to numbers.
        axes: of the method.

    Raises:
        UserError: naming every fault at once.
    """
    source = f"grid={given}"
    if isinstance(given, Mapping):
        return search_space_of(_by_name(given, source, axes), source, axes)
    text = str(given)
    if ":" in text:
        parts = [part.partition(":") for part in text.replace(",", ";").split(";") if part.strip()]
        named = {name.strip(): values.split("/") for name, _, values in parts}
        if len(named) < len(parts):
            raise UserError(f"{source}: names a number twice; name each once")
        return search_space_of(_by_name(named, source, axes), source, axes)
    lists = text.lower().split("x", len(axes) - 1)
    if len(lists) != len(axes):
        _refuse_form(source, axes)
    return search_space_of([values.split("/") for values in lists], source, axes)


def _by_name(given: Mapping[Any, Any], source: str, axes: Axes) -> list[list[Any]]:
    if set(given) != set(axes.names):
        example = ";".join(f"{name}:1/2" for name in axes.names)
        raise UserError(
            f"{source}: must map {' and '.join(axes.names)} to lists of numbers, as {example}"
        )
    listed = (given[name] for name in axes.names)
    return [list(v) if isinstance(v, (list, tuple)) else [v] for v in listed]


def _refuse_form(source: str, axes: Axes) -> NoReturn:
    names = [axis.short for axis in axes]
    example = "x".join(["1/2/4", "4/9", ".5/1", "0/1"][: len(axes)])
    raise UserError(f"{source}: write {' and '.join(names)} as {example} ({names[0]} before the x)")


def search_space_of(values: Sequence[Sequence[Any]], source: str, axes: Axes) -> SearchSpace:
    """Check the numbers of a search space.

    Args:
        values: of each axis: numbers, or how they are written.
        source: what the user gave, for messages.
        axes: of the method.

    Raises:
        UserError: naming every fault at once.
    """
    faults: list[str] = []
    allowed: list[tuple[float, ...]] = []
    for axis, given in zip(axes, values, strict=True):
        numbers = [(value, axis.read(value)) for value in given]
        faults += [
            f"{axis.short} must be {axis.allowed}, not {value!r}"
            for value, number in numbers
            if number is None
        ]
        allowed.append(tuple(dict.fromkeys(n for _, n in numbers if n is not None)))
    faults += [
        f"no {axis.short}" for axis, given in zip(axes, values, strict=True) if not len(given)
    ]
    if faults:
        raise UserError(f"{source}: {'; '.join(faults)}")
    return SearchSpace(axes, tuple(allowed))


def _number(value: object) -> float | None:
    """Read a finite number; None where it is none."""
    if isinstance(value, bool):
        return None
    try:
        number = float(str(value).strip())
    except ValueError:
        return None
    return number if math.isfinite(number) else None
