"""The plots of a comparison and of a sweep: the same for the page and for PNG files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from sadi_lmeval.reports.drawing import (
    SHADES,
    TEXT,
    Area,
    Boxes,
    Dot,
    Drawing,
    Line,
    Mark,
    Outline,
    Words,
    fitting,
    shade,
    width_of,
)

WIDTH = 336.0
"""Pixels of every plot: it fits a telephone, and three of them a desk."""
REACH = 0.05
"""The least difference that has the darkest shade, so that noise alone is pale."""
INTERVAL = 1.96
"""Standard errors on either side of a mean, of a 95 % interval by the normal distribution."""
MINUS = "−"
_WHITE = 4
"""The level from which on letters on a colour are those of dark ground."""


class Measure(NamedTuple):
    """How differences are shown.

    Attributes:
        factor: 100 where they are shares, which are shown in points; else 1.
        unit: "points", "log-likelihood a token".
        reach: the difference that has the darkest shade, before ``factor``.
    """

    factor: int
    unit: str
    reach: float

    def text(self, number: float, places: int | None = None) -> str:
        """Show a difference with its sign."""
        digits = (1 if self.factor == 100 else 3) if places is None else places
        return signed(number * self.factor, digits)

    def level(self, number: float) -> int:
        """Shade a difference; by the square root, so that small ones show beside large."""
        part = math.sqrt(abs(number) / self.reach)
        return int(math.copysign(min(SHADES, round(SHADES * part)), number))


class Tried(NamedTuple):
    """A setting on held-out documents.

    Attributes:
        numbers: of the setting, in the order of its axes.
        difference: from the unsteered model; None where it is not finite.
        stderr: of the difference; None where it is not known.
        dropped: before the last document, by the first ones alone.
    """

    numbers: tuple[float, ...]
    difference: float | None
    stderr: float | None
    dropped: bool = False


class Gain(NamedTuple):
    """A row's gain over the unsteered model on one task.

    Attributes:
        name: of the row.
        scored: on the scored documents; None where it is not known.
        low, high: its 95 % interval.
        held_out: on the documents that the setting was chosen on.
        color: of its mark.
        quiet: a control, which is there to be beaten.
        warned: a warning tells more of it.
    """

    name: str
    scored: float | None
    low: float | None
    high: float | None
    held_out: float | None
    color: str = "ink"
    quiet: bool = False
    warned: bool = False


def signed(number: float, places: int | None = None) -> str:
    """Show a number with its sign, and a true minus; nothing is -0."""
    rounded = number if places is None else round(number, places)
    form = "g" if places is None else f".{places}f"
    return f"{rounded + 0.0:{'+' if rounded else ''}{form}}".replace("-", MINUS)


def number_text(value: float) -> str:
    return f"{value:g}".replace("-", MINUS)


def axis_text(name: str) -> str:
    """Name a number of a setting as papers do."""
    return "K" if name == "top_k" else name


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Choose round numbers between two, with 0 among them if it lies there."""
    span = (high - low) or 1.0
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= raw - 1e-12)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 10) + 0.0 for n in range(first, math.floor(high / step + 1e-9) + 1)]


def gain_range(rows: Sequence[Gain]) -> tuple[float, float]:
    """Give the range in which all numbers of some rows lie, and 0."""
    ends = [0.0]
    for row in rows:
        ends += [n for n in (row.scored, row.low, row.high, row.held_out) if n is not None]
    low, high = min(ends), max(ends)
    room = 0.04 * (high - low) or 1.0
    return low - room, high + room


def gains(title: str, rows: Sequence[Gain], span: tuple[float, float], unit: str) -> Drawing:
    """Draw each row's gain with its 95 % interval, and its gain while tuning as a ring.

    Args:
        title: the task.
        rows: their numbers as they are shown (in points, say).
        span: the range of the axis: the same for all tasks, so that they can be compared.
        unit: of the axis.
    """
    longest = max((width_of(row.name, 12) + 10 * row.warned for row in rows), default=0.0)
    left, right = min(156.0, max(84.0, longest + 12)), WIDTH - 12
    high, top = 23.0, 6.0
    bottom = top + high * len(rows)
    low, most = span

    def x(number: float) -> float:
        return left + (right - left) * (number - low) / (most - low)

    said = [
        f"{row.name} {signed(row.scored, 1)}"
        + (
            ""
            if row.low is None or row.high is None
            else f" [{signed(row.low, 1)}, {signed(row.high, 1)}]"
        )
        for row in rows
        if row.scored is not None
    ]
    drawing = Drawing(
        title, f"Gain over the unsteered model on {title}, {unit}: {'; '.join(said)}", WIDTH,
        bottom + 38,
    )  # fmt: skip
    marks = ticks(low, most, 5)
    for tick in marks:
        color, width = ("edge", 1.2) if tick == 0 else ("rule", 1.0)
        drawing.add(Line(color, [(x(tick), top), (x(tick), bottom)], width))
        drawing.add(Words(signed(tick), (x(tick), bottom + 11), anchor="middle"))
    drawing.add(Words(f"{unit} over unsteered", ((left + right) / 2, bottom + 28), anchor="middle"))
    for number, row in enumerate(rows):
        y = top + high * (number + 0.5)
        text = fitting(row.name, left - (18 if row.warned else 8), 12)
        color = "soft" if row.quiet else "ink"
        title = row.name if text != row.name else ""
        drawing.add(Words(text, (0, y), color, size=12, title=title))
        if row.warned:
            drawing.add(Words("!", (left - 14, y), "worse", size=12, bold=True,
                              title=f"{row.name}: see the warnings"))  # fmt: skip
        if row.low is not None and row.high is not None:
            drawing.add(Line(row.color, [(x(row.low), y), (x(row.high), y)], 1.6))
        if row.held_out is not None:
            told = f"{row.name}, held out: {signed(row.held_out, 1)}"
            drawing.add(Dot("soft", (x(row.held_out), y), 3.6, True, told))
        if row.scored is not None:
            told = f"{row.name}, scored: {signed(row.scored, 1)}"
            drawing.add(Dot(row.color, (x(row.scored), y), 3.9, False, told))
    return drawing


def reach_of(tried: Sequence[Tried]) -> float:
    """Give the largest difference of some settings: what the darkest shade is to mean."""
    known = [abs(each.difference) for each in tried if each.difference is not None]
    return max([REACH, *known])


def heatmap(
    title: str,
    names: Sequence[str],
    tried: Sequence[Tried],
    chosen: tuple[float | None, ...] | None,
    measure: Measure,
) -> Drawing:
    """Draw the difference of every setting from the unsteered model, the chosen one outlined.

    The last number of a setting goes one way and all others the other, the shorter across.

    Args:
        title: what is steered how.
        names: of a setting's numbers.
        tried: every setting.
        chosen: the setting that is outlined, if it is there.
        measure: how differences are shown.
    """
    others = sorted({each.numbers[:-1] for each in tried})
    strengths = sorted({each.numbers[-1:] for each in tried})
    down, across = (others, strengths) if len(strengths) <= len(others) else (strengths, others)
    names_of = {id(others): names[:-1], id(strengths): names[-1:]}
    down_name, across_name = (
        ", ".join(map(axis_text, names_of[id(each)])) for each in (down, across)
    )
    by_key = {each.numbers: each for each in tried}

    def key(row: tuple[float, ...], column: tuple[float, ...]) -> tuple[float, ...]:
        return row + column if down is others else column + row

    def text(key: tuple[float, ...]) -> str:
        return ", ".join(map(number_text, key))

    left = 26 + max(width_of(text(row)) for row in down)
    wide = min(54.0, (WIDTH - left - 2) / len(across))
    high = max(7.0, min(22.0, 480 / len(down)))
    top, bottom = 2.0, 2 + high * len(down)
    drawing = Drawing(title, _said_of(title, names, tried, chosen, measure), WIDTH, bottom + 36)
    step = math.ceil(13 / high)
    for number, row in enumerate(down):
        if number % step == 0:
            drawing.add(Words(text(row), (left - 6, top + high * (number + 0.5)), anchor="end"))
    step = math.ceil((max(width_of(text(column)) for column in across) + 4) / wide)
    for number, column in enumerate(across):
        if number % step == 0:
            x = left + wide * (number + 0.5)
            drawing.add(Words(text(column), (x, bottom + 11), anchor="middle"))
    middle = left + wide * len(across) / 2
    drawing.add(Words(across_name, (middle, bottom + 27), anchor="middle"))
    if down_name:
        drawing.add(Words(down_name, (8, (top + bottom) / 2), anchor="middle", up=True))
    outline = None
    for y, row in enumerate(down):
        for x, column in enumerate(across):
            each = by_key.get(key(row, column))
            if each is None:
                continue
            box = (left + wide * x + 1, top + high * y + 1, wide - 2, high - 2)
            where = ", ".join(
                f"{axis_text(n)} {number_text(v)}" for n, v in zip(names, each.numbers, strict=True)
            )
            if each.difference is None:
                drawing.add(Boxes("panel", [box], f"{where}: not finite"))
                mark, ink = "×", "soft"
            else:
                level = measure.level(each.difference)
                error = (
                    "" if each.stderr is None
                    else f" ± {measure.text(each.stderr).lstrip('+')}"
                )  # fmt: skip
                told = f"{where}: {measure.text(each.difference)}{error}"
                drawing.add(Boxes(shade(level), [box], told))
                mark = measure.text(each.difference)
                room = wide - (3 if not each.dropped else 3 + width_of("()"))
                if width_of(mark) > room and measure.factor == 100:
                    mark = measure.text(each.difference, 0)
                ink = "on-dark" if abs(level) >= _WHITE else "ink"
            mark = f"({mark})" if each.dropped else mark
            if width_of(mark) <= wide - 1 and high >= 13:
                at = (left + wide * (x + 0.5), top + high * (y + 0.5))
                drawing.add(Words(mark, at, ink, "middle"))
            if each.numbers == chosen:
                outline = Outline(box, f"chosen: {where}")
    if outline is not None:
        drawing.add(outline)
    return drawing


def _said_of(
    title: str,
    names: Sequence[str],
    tried: Sequence[Tried],
    chosen: tuple[float | None, ...] | None,
    measure: Measure,
) -> str:
    """Say a heatmap in words."""

    def of(numbers: Sequence[float | None]) -> str:
        known = [
            f"{axis_text(name)} {number_text(value)}"
            for name, value in zip(names, numbers, strict=True)
            if value is not None
        ]
        return ", ".join(known)

    known = [each for each in tried if each.difference is not None]
    said = f"{title}: {len(tried)} settings tried"
    if known:
        best = max(known, key=lambda each: each.difference or 0.0)
        said += (
            f"; the best is {of(best.numbers)} with {measure.text(best.difference or 0.0)} "
            f"{measure.unit}"
        )
    mine = next((each for each in known if each.numbers == chosen), None)
    if mine is not None:
        said += (
            f"; outlined is {of(mine.numbers)} with {measure.text(mine.difference or 0.0)} "
            f"{measure.unit}"
        )
    return said


def color_bar(measure: Measure) -> Drawing:
    """Draw what the shades of a measure mean."""
    wide, high = 21.0, 12.0
    left = 20.0
    name = f"difference from unsteered, {measure.unit}"
    short = width_of(measure.text(-measure.reach)) <= 1.7 * wide
    said = " to ".join(measure.text(n * measure.reach) for n in (-1, 1))
    drawing = Drawing("Colours", f"Shades: {name}, from {said}", WIDTH, 46)
    for level in range(-SHADES, SHADES + 1):
        x = left + wide * (level + SHADES)
        drawing.add(Boxes(shade(level), [(x, 2, wide, high)]))
        if level in ((-SHADES, -3, 0, 3, SHADES) if short else (-SHADES, 0, SHADES)):
            value = math.copysign((level / SHADES) ** 2 * measure.reach, level)
            at = (x + wide / 2, high + 11)
            drawing.add(Words(measure.text(value), at, anchor="middle"))
    drawing.add(Words(name, (left + wide * (SHADES + 0.5), high + 27), anchor="middle"))
    return drawing


def curves(
    title: str,
    names: Sequence[str],
    tried: Sequence[Tried],
    through: tuple[float, ...],
    measure: Measure,
) -> Drawing:
    """Draw the gain along each number of a setting, the others held, with 95 % bands.

    Args:
        title: what is steered how.
        names: of a setting's numbers.
        tried: every setting.
        through: the setting whose other numbers are held.
        measure: how differences are shown.
    """
    courses = [
        _Course(axis, _along(tried, through, axis), through, measure) for axis in range(len(names))
    ]
    ends = [0.0, *(end for course in courses for end in course.ends)]
    room = 0.06 * (max(ends) - min(ends)) or 1.0
    low, high = min(ends) - room, max(ends) + room
    marks = ticks(low, high, 4)
    left, gap, top, tall = 26 + max(width_of(signed(tick)) for tick in marks), 16.0, 6.0, 118.0
    wide = (WIDTH - left - 8 - gap * (len(names) - 1)) / len(names)

    def y(number: float) -> float:
        return top + tall * (high - number) / (high - low)

    held = ", ".join(
        f"{axis_text(n)} {number_text(v)}" for n, v in zip(names, through, strict=True)
    )
    drawing = Drawing(
        title, f"{title}: gain over unsteered along {' and '.join(map(axis_text, names))}, "
        f"through {held}, with 95 % bands, {measure.unit}", WIDTH, top + tall + 36,
    )  # fmt: skip
    drawing.add(Words(measure.unit, (8, top + tall / 2), anchor="middle", up=True))
    for tick in marks:
        drawing.add(Words(signed(tick), (left - 6, y(tick)), anchor="end"))
    for name, course in zip(names, courses, strict=True):
        start = left + course.axis * (wide + gap)
        for tick in marks:
            color, width = ("edge", 1.2) if tick == 0 else ("rule", 1.0)
            drawing.add(Line(color, [(start, y(tick)), (start + wide, y(tick))], width))
        middle, bottom = start + wide / 2, top + tall
        drawing.add(Words(axis_text(name), (middle, bottom + 27), anchor="middle"))
        drawing.add(*course.marks(axis_text(name), start, wide, bottom, y))
    return drawing


class _Course(NamedTuple):
    """The gain along one number of a setting.

    Attributes:
        axis: the number's place in a setting.
        points: the settings, in its order.
        through: the setting that is ringed.
        measure: how differences are shown.
    """

    axis: int
    points: Sequence[Tried]
    through: tuple[float, ...]
    measure: Measure

    @property
    def ends(self) -> list[float]:
        """The ends of all bands."""
        known = [each for each in self.points if each.difference is not None]
        return [self.measure.factor * _end(each, side) for each in known for side in (1, -1)]

    def marks(
        self, name: str, start: float, wide: float, bottom: float, y: Callable[[float], float]
    ) -> list[Mark]:
        """Make line, band, dots and the numbers below.

        Args:
            name: of the number.
            start, wide: the left and the width that there are.
            bottom: of the frame.
            y: the height of a difference.
        """
        count, factor = len(self.points), self.measure.factor
        step = (wide - 16) / (count - 1) if count > 1 else wide
        first = start + (8 if count > 1 else wide / 2)
        texts = [number_text(each.numbers[self.axis]) for each in self.points]
        every = math.ceil((max(map(width_of, texts)) + 6) / step)
        made: list[Mark] = [
            Words(text, (first + step * place, bottom + 11), anchor="middle")
            for place, text in enumerate(texts)
            if place % every == 0
        ]
        for run in _runs(self.points):
            band = [(first + step * place, each) for place, each in run if each.stderr is not None]
            line = [(first + step * place, each) for place, each in run]
            if len(band) > 1:
                upper, lower = (
                    [(x, y(factor * _end(each, side))) for x, each in band] for side in (1, -1)
                )
                made.append(Area("accent", [*upper, *reversed(lower)]))
            if len(line) > 1:
                course = [(x, y(factor * (each.difference or 0.0))) for x, each in line]
                made.append(Line("accent", course, 1.8))
            for x, each in line:
                own, gain = each.numbers == self.through, each.difference or 0.0
                told = f"{name} {number_text(each.numbers[self.axis])}: {self.measure.text(gain)}"
                at = (x, y(factor * gain))
                made.append(Dot("accent", at, 4.2 if own else 2.0, own, told))
        return made


def _along(tried: Sequence[Tried], through: Sequence[float], axis: int) -> list[Tried]:
    """List the settings that are like another one in all numbers but one, in its order."""
    alike = [
        each
        for each in tried
        if all(a == b or n == axis for n, (a, b) in enumerate(zip(each.numbers, through,
                                                                   strict=True)))
    ]  # fmt: skip
    return sorted(alike, key=lambda each: each.numbers[axis])


def _end(tried: Tried, side: int) -> float:
    """Give the upper (1) or lower (-1) end of a difference's 95 % interval."""
    return (tried.difference or 0.0) + side * INTERVAL * (tried.stderr or 0.0)


def _runs(points: Sequence[Tried]) -> list[list[tuple[int, Tried]]]:
    """Divide points, with their places, at those that are not finite."""
    runs: list[list[tuple[int, Tried]]] = [[]]
    for place, each in enumerate(points):
        if each.difference is None:
            runs.append([])
        else:
            runs[-1].append((place, each))
    return [run for run in runs if run]


class Entries(NamedTuple):
    """The entries of a model, and what a fit says of them.

    Attributes:
        layers, entries: how many there are.
        name: of an entry: "head".
        score: of the numbers in ``rows``.
        width: entries in a column.
        rows: of each layer a number a column; empty where nothing is known.
        selected: of (layer, column) how many are edited there.
        whole: layers that are edited as a whole.
    """

    layers: int
    entries: int
    name: str
    score: str
    width: int
    rows: Sequence[Sequence[float]]
    selected: Mapping[tuple[int, int], int]
    whole: Sequence[int] = ()


def entry_map(title: str, of: Entries) -> Drawing:
    """Draw what a fit found: a number for every entry, those that are steered outlined.

    Args:
        title: what is steered how.
        of: layers by entries, the first layer at the top.
    """
    columns = math.ceil(of.entries / of.width)
    left, top = 46.0, 2.0
    wide = min(30.0, (WIDTH - left - 4) / columns)
    high = max(2.0, min(15.0, 300 / of.layers))
    right, bottom = left + wide * columns, top + high * of.layers
    known = [number for row in of.rows for number in row]
    shades, legend = _shades(known)
    plural = f"{of.name}s"
    count = sum(of.selected.values())
    steered = (
        f"layer {', '.join(map(str, of.whole))} is steered as a whole" if of.whole
        else f"{count} selected" if count else "none selected"
    )  # fmt: skip
    said = (
        f"{title}: {of.score or 'selected entries'}, {of.layers} layers by {of.entries} {plural}; "
        f"{steered}"
    )
    drawing = Drawing(title, said, WIDTH, bottom + (74 if known else 24))
    drawing.add(Boxes("panel", [(left, top, wide * columns, high * of.layers)]))
    colored: dict[str, list[tuple[float, float, float, float]]] = {}
    for layer, row in enumerate(of.rows[: of.layers]):
        y = top + high * layer
        column = 0
        levels = [shades(number) for number in row[:columns]]
        while column < len(levels):
            end = column
            while end < len(levels) and levels[end] == levels[column]:
                end += 1
            if levels[column]:
                box = (left + wide * column, y, wide * (end - column), high)
                colored.setdefault(shade(levels[column]), []).append(box)
            column = end
    for color, boxes in colored.items():
        drawing.add(Boxes(color, boxes))
    if wide >= 8:
        gaps = [(left + wide * n - 0.5, top, 1.0, high * of.layers) for n in range(1, columns)]
        drawing.add(Boxes("page", gaps))
    if high >= 5:
        gaps = [(left, top + high * n - 0.5, wide * columns, 1.0) for n in range(1, of.layers)]
        drawing.add(Boxes("page", gaps))
    step = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if n * high >= 15)
    for layer in range(0, of.layers, step):
        drawing.add(Words(str(layer), (left - 6, top + high * (layer + 0.5)), anchor="end"))
    drawing.add(Words("layer", (8, (top + bottom) / 2), anchor="middle", up=True))
    drawing.add(Words("0", (left, bottom + 11)))
    drawing.add(Words(str(of.entries - 1), (right, bottom + 11), anchor="end"))
    drawing.add(Words(of.name, ((left + right) / 2, bottom + 11), anchor="middle"))
    for (layer, column), many in sorted(of.selected.items()):
        first = column * of.width
        last = min(first + of.width, of.entries) - 1
        which = f"{of.name} {first}" if of.width == 1 else f"{plural} {first}–{last}"
        box = (left + wide * column, top + high * layer, wide, high)
        told = f"layer {layer}, {which}: {many}"
        if not known:
            drawing.add(Boxes("accent", [box], told))
        elif wide >= 8 and high >= 8:
            drawing.add(Outline(box, told))
        else:  # too small to have an edge
            at = (left + wide * (column + 0.5), top + high * (layer + 0.5))
            drawing.add(Dot("ink", at, 2.2, True, told))
    for layer in of.whole:
        box = (left - 1, top + high * layer, wide * columns + 2, high)
        drawing.add(Outline(box, f"layer {layer}"))
    if known:
        _add_legend(drawing, of.score, legend, left, bottom + 28)
    return drawing


def _shades(known: Sequence[float]) -> tuple[Callable[[float], int], list[tuple[int, str]]]:
    """Shade a fit's numbers: those of both signs on either side of 0, others from least to most.

    Returns:
        what gives a number's level, and the levels that a legend names, with their numbers.
    """
    low, high = min(known, default=0.0), max(known, default=0.0)
    if low < 0:
        reach = max(-low, high)

        def either(number: float) -> int:
            return int(math.copysign(round(SHADES * math.sqrt(abs(number) / reach)), number))

        return either, [
            (-SHADES, f"{MINUS}{reach:.2g}"),
            (0, "0"),
            (SHADES, f"{reach:.2g}"),
        ]
    span = (high - low) or 1.0

    def rising(number: float) -> int:
        return round(SHADES * (number - low) / span)

    return rising, [(0, f"{low:.2g}"), (SHADES, f"{high:.2g}")]


def _add_legend(
    drawing: Drawing, name: str, named: Sequence[tuple[int, str]], left: float, top: float
) -> None:
    """Say what the shades of an entry map mean."""
    first, wide, high = named[0][0], 15.0, 10.0
    for level in range(first, SHADES + 1):
        drawing.add(Boxes(shade(level), [(left + wide * (level - first), top, wide, high)]))
    for level, text in named:
        x = left + wide * (level - first + 0.5)
        drawing.add(Words(text, (x, top + high + 10), anchor="middle"))
    drawing.add(Words(name, (left, top + high + 26)))


def titled(drawing: Drawing, lines: Sequence[str], below: Drawing | None = None) -> Drawing:
    """Give a drawing a heading, and a legend below: a picture that stands by itself."""
    first, *rest = lines
    longest = max(width_of(first, 13), *(width_of(line, TEXT) for line in rest), 0.0)
    width = max(drawing.width, longest + 8) + 24
    top = 34.0 + 16 * len(rest)
    height = top + drawing.height + (below.height if below is not None else 0) + 12
    whole = Drawing(drawing.title, drawing.said, width, height)
    whole.add(Words(first, (12, 18), "ink", size=13, bold=True))
    for number, line in enumerate(rest):
        whole.add(Words(line, (12, 36 + 16 * number)))
    whole.place(drawing, 12, top)
    if below is not None:
        whole.place(below, 12, top + drawing.height + 4)
    return whole
