"""The report as one HTML page that needs no network and no JavaScript."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from sadi_lmeval.controls import is_control
from sadi_lmeval.records.record import Record
from sadi_lmeval.records.steering import FitRecord, finite
from sadi_lmeval.reports.drawing import SHADES, shade, style, svg
from sadi_lmeval.reports.leaderboard import UNSTEERED, Board, Cell, Row, Transfer
from sadi_lmeval.reports.plots import (
    INTERVAL,
    MINUS,
    REACH,
    Entries,
    Gain,
    Measure,
    Tried,
    axis_text,
    color_bar,
    curves,
    entry_map,
    gain_range,
    gains,
    heatmap,
    number_text,
    reach_of,
)
from sadi_lmeval.reports.repeating import command_of, without_places
from sadi_lmeval.reports.significance import Mean
from sadi_lmeval.reports.tables import (
    conditions,
    how_to_repeat,
    legend,
    majorities,
    not_beating,
    shown,
)

_COLUMNS = 64
"""The most columns of a map of entries: wider sites are binned."""
_ANSWERS = 7
"""Answers that have a colour of their own; the others share one."""
_CHANGES = 6
"""The most texts that are shown of a method on a task, before and after."""


class Tile(NamedTuple):
    """A coloured number; ``shade`` names its colour."""

    text: str
    shade: str
    own: bool = False
    mark: str = ""


class Grid(NamedTuple):
    """A coloured table; a tile may be missing."""

    title: str
    corner: str
    columns: list[str]
    rows: list[tuple[str, list[Tile | None]]]


class SettingRow(NamedTuple):
    """What a method steered a task with, and its gain over the unsteered model.

    Attributes:
        held_out: gain on the documents that it was chosen on, mean over folds, with its error.
        unit: of that, where it is not that of ``scored``.
        rule: that it was chosen by.
        chance: p_max of each fold.
    """

    method: str
    task: str
    setting: str
    held_out: str
    unit: str
    held_out_documents: int
    scored: str
    scored_documents: int
    rule: str
    chance: str


class Change(NamedTuple):
    """A text before and after; ``before_is``: right, wrong, or nothing where that is not known."""

    prompt: str
    before: str
    after: str
    before_is: str
    after_is: str


class Bar(NamedTuple):
    """A distribution of answers: (answer, share, colour)."""

    name: str
    parts: list[tuple[str, float, int]]

    @property
    def said(self) -> str:
        return ", ".join(f"{name} {100 * share:.0f} %" for name, share, _ in self.parts if share)


def page(boards: Sequence[Board]) -> str:
    """Render ``report.html``."""
    return _template().render(
        sections=[_section(board) for board in boards],
        shown=_shown,
        p_text=_p_text,
        is_control=is_control,
        colors=style(),
        shades=[shade(level) for level in range(-SHADES, SHADES + 1)],
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("sadi_lmeval.reports").joinpath("page.html.jinja").read_text("utf-8")
    return environment.from_string(source)


def _shown(number: float | None, scale: int, sign: bool = False) -> str:
    """Show a number as the tables do, with a minus sign."""
    return shown(number, scale, sign).replace("-", MINUS)


def _with_minus(text: str) -> str:
    """Give negative numbers within words a minus sign."""
    return re.sub(r"(?<=[ (\[])-(?=\d)", MINUS, text)


def _p_text(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def _section(board: Board) -> dict[str, Any]:
    steered = [cell for row in board.rows for cell in row.cells.values() if row.method != UNSTEERED]
    measures = _measures(steered, board)
    section: dict[str, Any] = {
        "board": board,
        "conditions": conditions(board),
        "legend": legend(board),
        "majorities": majorities(board),
        "not_beating": [_with_minus(line) for line in not_beating(board)],
        "warnings": [_with_minus(line) for line in board.warnings],
        "documents": {
            task: len(cell.record.documents)
            for row in board.rows
            for task, cell in row.cells.items()
        },
        "gains": _gains(board),
        "has_held_out": any(_held_out(cell) is not None for cell in steered),
        "settings": [_setting_row(c, board) for c in steered if c.record.steering.fits],
        "answers": [(t, bars) for t in board.tasks if (bars := _bars(board, t)) is not None],
        "texts": _texts(board),
        "transfers": [
            _matrix(transfer, board, max([100 * REACH, *map(abs, _transferred(board).values())]))
            for transfer in board.transfers
        ],
        "bars": [svg(color_bar(measure)) for measure in measures.values()],
        "found": _found(steered, board, measures),
        "repeat": [(row.name, *_repeat(row)) for row in board.rows],
    }
    named = (
        ("gains", "Gain", section["gains"]),
        ("scores", "Scores", board.tasks),
        ("warnings", "Warnings", board.warnings),
        ("settings", "Settings", section["settings"]),
        ("answers", "Answers", section["answers"]),
        ("texts", "Before and after", section["texts"]),
        ("transfer", "Transfer", section["transfers"]),
        ("found", "Tried and found", section["found"]),
        ("repeat", "How to repeat", True),
    )
    return {**section, "parts": [(key, name) for key, name, there in named if there]}


# ------------------------------------------------------------------ gains


class _HeldOut(NamedTuple):
    """A chosen setting's gain on held-out documents, mean over folds.

    Attributes:
        difference: of the metric, as it is; of another objective, where more is better.
    """

    objective: str
    difference: float
    stderr: float | None


def _tuned(cell: Cell) -> list[FitRecord]:
    return [fit for fit in cell.record.steering.fits if fit.tuning and fit.tuning.table]


def _held_out(cell: Cell) -> _HeldOut | None:
    """Give the gain that a cell's settings had while tuning; None where some fold has none."""
    tuned = _tuned(cell)
    rows = []
    for fit in tuned:
        table = fit.tuning.table if fit.tuning else []
        chosen = fit.chosen
        rows.append(next((r for r in table if {n: r.get(n) for n in chosen} == chosen), {}))
    gained = [finite(row.get("difference")) for row in rows]
    errors = [finite(row.get("difference_stderr")) for row in rows]
    known = [number for number in gained if number is not None]
    if not known or len(known) != len(cell.record.steering.fits):
        return None
    sound = [error for error in errors if error is not None]
    objective = ", ".join(dict.fromkeys(fit.tuning.objective for fit in tuned if fit.tuning))
    flipped = objective == "metric" and not cell.record.higher_is_better  # tuning counts up
    return _HeldOut(
        objective,
        (-1 if flipped else 1) * sum(known) / len(known),
        math.hypot(*sound) / len(sound) if len(sound) == len(known) else None,
    )


def _gains(board: Board) -> list[tuple[str, str, Markup]]:
    """Draw the gains of all rows, a plot a task, and one of their means."""
    panels: list[tuple[str, str, list[Gain], str]] = []
    for task in board.tasks:
        scale = board.scale(task)
        rows = []
        for row in board.rows:
            cell = row.cells.get(task)
            compared = None if cell is None else cell.comparison
            if cell is None or compared is None or compared.difference is None:
                continue
            low, high = (None if n is None else n * scale for n in (compared.low, compared.high))
            tuned = _held_out(cell)
            is_metric = tuned is not None and tuned.objective == "metric"
            rows.append(
                Gain(
                    row.name,
                    compared.difference * scale,
                    low,
                    high,
                    tuned.difference * scale if tuned is not None and is_metric else None,
                    _color(cell.significant, cell.better),
                    is_control(row.method),
                    cell.diagnosis.warning is not None,
                )
            )
        unit = "points" if scale == 100 else board.metric(task)
        under = f"{board.metric(task)}, {_documents(board, task)} documents"
        if rows and not all(
            cell.record.higher_is_better
            for r in board.rows
            for cell in r.cells.values()
            if cell.record.task == task
        ):
            under += ", lower is better"
        panels.append((task, under, rows, unit))
    for title, under, means in (
        ("average", f"of {len(board.tasks)} tasks", [_mean_gain(row) for row in board.rows]),
        ("elsewhere", "side effects on other tasks", [_side_gain(row) for row in board.rows]),
    ):
        panels.append((title, under, [gain for gain in means if gain is not None], "points"))
    panels = [panel for panel in panels if panel[2]]
    spans = {
        unit: gain_range([gain for _, _, rows, of in panels if of == unit for gain in rows])
        for _, _, _, unit in panels
    }
    return [
        (title, under, svg(gains(title, rows, spans[unit], unit)))
        for title, under, rows, unit in panels
    ]


def _documents(board: Board, task: str) -> int:
    return next(len(r.cells[task].record.documents) for r in board.rows if task in r.cells)


def _color(significant: bool, better: bool) -> str:
    return ("accent" if better else "worse") if significant else "ink"


def _mean_gain(row: Row) -> Gain | None:
    if row.average is None or row.average.difference is None:
        return None
    return _gain_of_mean(row, row.average.difference, row.average.arrow)


def _side_gain(row: Row) -> Gain | None:
    if row.elsewhere is None:
        return None
    return _gain_of_mean(row, row.elsewhere.difference, row.elsewhere.mark)


def _gain_of_mean(row: Row, mean: Mean, arrow: str) -> Gain:
    value, color = 100 * mean.value, _color(bool(arrow), mean.value > 0)
    low = high = None
    if mean.stderr is not None:
        low, high = (value + side * 100 * INTERVAL * mean.stderr for side in (-1, 1))
    return Gain(row.name, value, low, high, None, color, is_control(row.method))


# ------------------------------------------------------------------ settings


def _text(value: object) -> str:
    number = finite(value)
    return "–" if value is None else str(value) if number is None else number_text(number)


def _setting(cell: Cell) -> str:
    """Give the chosen numbers, of each fold if the folds differ: ``K 6/4, delta 9``."""
    steering = cell.record.steering
    chosen = [fit.chosen for fit in steering.fits] or [steering.setting]
    steers = [any(map(finite, setting.values())) for setting in chosen]
    if not any(steers):
        return "unsteered"
    if not all(steers):
        each = [_numbers(steering.axes, [setting]) for setting in chosen]
        return " / ".join(
            text if on else "unsteered" for text, on in zip(each, steers, strict=True)
        )
    return _numbers(steering.axes, chosen)


def _numbers(axes: Sequence[str], chosen: Sequence[Mapping[str, Any]]) -> str:
    said = []
    for name in axes:
        values = [_text(setting.get(name)) for setting in chosen]
        said.append(f"{axis_text(name)} {'/'.join(values if len(set(values)) > 1 else values[:1])}")
    return ", ".join(said)


def _setting_row(cell: Cell, board: Board) -> SettingRow:
    record, tuned = cell.record, _held_out(cell)
    scale = board.scale(record.task)
    compared = None if cell.comparison is None else cell.comparison.difference
    held_out, unit = "", ""
    if tuned is not None:
        measured = _kind(tuned.objective, scale)
        held_out = _shown(tuned.difference, measured[0], sign=True)
        if tuned.stderr is not None:
            held_out += f" ± {_shown(tuned.stderr, measured[0])}"
        unit = "" if tuned.objective == "metric" else measured[1]
    ruled = [fit.tuning for fit in record.steering.fits if fit.tuning and fit.tuning.rule]
    chances = ["n/a" if each.p_max is None else f"{each.p_max:.3f}" for each in ruled]
    rule = "/".join(dict.fromkeys(str(each.rule) for each in ruled))
    return SettingRow(
        record.method,
        record.task,
        _setting(cell),
        held_out or "–",
        unit,
        sum(fit.tuning.documents for fit in _tuned(cell) if fit.tuning),
        _shown(compared, scale, sign=True),
        len(record.documents),
        rule or ("given" if not _tuned(cell) else "–"),
        f"p_max {'/'.join(chances)}" if ruled else "",
    )


def _kind(objective: str, scale: int) -> tuple[int, str]:
    """Say how differences of an objective are shown: the factor, and the unit.

    Args:
        objective: that settings were judged by.
        scale: of the task's metric.
    """
    if objective == "metric":
        return scale, "points" if scale == 100 else "metric"
    if objective == "exact_match":
        return 100, "points, exact match"
    return 1, f"log-{objective}"  # a log-likelihood is no share


# ------------------------------------------------------------------ answers


def _bars(board: Board, task: str) -> list[Bar] | None:
    """Give the distributions of a task's answers: the right ones, and each row's."""
    cells = [(row.name, row.cells[task].diagnosis) for row in board.rows if task in row.cells]
    shares = [(name, diagnosis.after) for name, diagnosis in cells if diagnosis.after]
    if not shares:
        return None
    gold = next((diagnosis.gold for _, diagnosis in cells if diagnosis.gold), None)
    if gold is not None:
        shares.insert(0, ("right answers", gold))
    total: Counter[str] = Counter()
    for _, mine in shares:
        total.update(mine)
    # In the order of the answers, the rarest left to "other" where there are many.
    named = {name for name, _ in total.most_common(_ANSWERS if len(total) > _ANSWERS + 1 else 8)}
    order = [name for name in dict.fromkeys(n for _, mine in shares for n in mine) if name in named]
    bars = []
    for name, mine in shares:
        parts = [(answer, mine.get(answer, 0.0), index) for index, answer in enumerate(order)]
        rest = sum(share for answer, share in mine.items() if answer not in named)
        if len(total) > len(named):
            parts.append((f"{len(total) - len(named)} others", rest, _ANSWERS))
        bars.append(Bar(name, parts))
    return bars


def _texts(board: Board) -> list[tuple[str, str, str, list[Change]]]:
    """List the texts that differ from the unsteered model's, by task and method."""
    found = []
    unsteered = next((row for row in board.rows if row.method == UNSTEERED), None)
    for task in board.tasks:
        before = None if unsteered is None else unsteered.cells.get(task)
        if before is None or not before.record.texts:
            continue
        for row in board.rows:
            cell = row.cells.get(task)
            if row.method != UNSTEERED and cell is not None and cell.record.texts:
                counted, changes = _changes(before.record, cell.record)
                if changes:
                    found.append((task, row.name, counted, changes))
    return found


def _changes(before: Record, after: Record) -> tuple[str, list[Change]]:
    changed = [n for n, text in enumerate(after.texts) if text != before.texts[n]]

    def rank(n: int) -> int:
        moved = (before.values[n], after.values[n])
        return {(0.0, 1.0): 0, (1.0, 0.0): 1}.get(moved, 2)  # type: ignore[arg-type]

    better, worse = (sum(rank(n) == kind for n in changed) for kind in (0, 1))
    counted = (
        f"{len(changed)} of {len(after.texts)} texts differ, {better} became right, {worse} wrong"
    )
    return counted, [
        Change(
            before.prompts[n],
            before.texts[n].strip(),
            after.texts[n].strip(),
            _rightness(before.values[n]),
            _rightness(after.values[n]),
        )
        for n in sorted(changed, key=rank)[:_CHANGES]
    ]


def _rightness(value: float | None) -> str:
    return {0.0: "wrong", 1.0: "right"}.get(-1.0 if value is None else value, "")


# ------------------------------------------------------------------ what was tried and found


def _tried(fit: FitRecord) -> list[Tried]:
    """List the settings that were tried, without the unsteered model."""
    names = list(fit.setting)
    tried = {}
    if fit.tuning is None:
        return []
    for row in fit.tuning.table:
        numbers = [finite(row.get(name)) for name in names]
        known = tuple(number for number in numbers if number is not None)
        if len(known) == len(names) and any(known):  # all 0 is the unsteered model
            error = finite(row.get("difference_stderr"))
            documents = finite(row.get("documents"))
            dropped = documents is not None and documents < fit.tuning.documents
            tried[known] = Tried(known, finite(row.get("difference")), error, dropped)
    return list(tried.values())


def _measures(cells: Sequence[Cell], board: Board) -> dict[tuple[int, str], Measure]:
    """Give all differences of one unit one scale of colours."""
    every: dict[tuple[int, str], list[Tried]] = {}
    for cell in cells:
        for fit in _tuned(cell):
            if fit.tuning is not None and (tried := _tried(fit)):
                kind = _kind(fit.tuning.objective, board.scale(cell.record.task))
                every.setdefault(kind, []).extend(tried)
    return {kind: Measure(*kind, reach_of(tried)) for kind, tried in every.items()}


_Figures = list[tuple[str, Markup]]
"""Captions and drawings."""


def _found(
    cells: Sequence[Cell], board: Board, measures: Mapping[tuple[int, str], Measure]
) -> list[tuple[str, list[tuple[str, _Figures]]]]:
    """Draw what was tried and what was found, by task, method and fit."""
    found = []
    for task in board.tasks:
        groups = []
        for cell in (cell for cell in cells if cell.record.task == task):
            fits = cell.record.steering.fits
            for number, fit in enumerate(fits, 1):
                title = cell.record.method
                if len(fits) > 1:
                    title += f", fit {number} of {len(fits)}"
                of_fit = fit.tuning.objective if fit.tuning else ""
                measure = measures.get(_kind(of_fit, board.scale(task)))
                if figures := _figures(f"{title} on {task}", cell, fit, measure):
                    groups.append((f"{title}: {_of_fit(cell, fit)}", figures))
        if groups:
            found.append((task, groups))
    return found


def _of_fit(cell: Cell, fit: FitRecord) -> str:
    if not any(map(finite, fit.chosen.values())):
        return "unsteered"
    return _numbers(cell.record.steering.axes, [fit.chosen])


def _figures(title: str, cell: Cell, fit: FitRecord, measure: Measure | None) -> _Figures:
    figures: _Figures = []
    names, tried = list(fit.setting), _tried(fit)
    if tried and measure is not None and fit.tuning is not None:
        chosen = tuple(finite(value) for value in fit.chosen.values())
        count = f"{len(tried)} settings on {fit.tuning.documents} held-out documents"
        figures.append((count, svg(heatmap(title, names, tried, chosen, measure))))
        known = [each for each in tried if each.difference is not None]
        through = next((each for each in known if each.numbers == chosen), None)
        said = "Through the chosen setting"
        if through is None and known:
            through = max(known, key=lambda each: each.difference or 0.0)
            best = dict(zip(names, through.numbers, strict=True))
            said = f"Through the best tried, {_numbers(names, [best])}"
        if through is not None and len(tried) > 1:
            drawing = curves(title, names, tried, through.numbers, measure)
            figures.append((said, svg(drawing)))
    entries = _entries(cell, fit)
    if entries is not None:
        said = "What the fit found" if entries.score else "Selected entries"
        if entries.width > 1:
            said += f", {entries.width} {entries.name}s a column"
            said += ": the one furthest from 0" if entries.score else ""
        figures.append((said, svg(entry_map(title, entries))))
    return figures


def _entries(cell: Cell, fit: FitRecord) -> Entries | None:
    """Give what a fit found of the model's entries, and which of them are steered."""
    steering = cell.record.steering
    layers, entries = steering.layers, steering.entries
    # A map of more layers than any model has would be a hostile one.
    if not layers or not entries or not 1 <= layers <= 1000 or not 1 <= entries < 1 << 31:
        return None
    width = math.ceil(entries / _COLUMNS)
    found = fit.found
    if found is not None and found.width != width:
        found = None  # not as it is written
    spots: Counter[tuple[int, int]] = Counter()
    for layer, entry, *_ in fit.selected or ():
        if 0 <= layer < layers and 0 <= entry < entries:
            spots[layer, entry // width] += 1
    block = finite(fit.chosen.get("layer"))
    steers = any(map(finite, fit.chosen.values()))
    whole = [int(block)] if block is not None and steers and 0 <= block < layers else []
    if found is None and not spots:
        return None
    return Entries(
        layers,
        entries,
        {"head": "head", "neuron": "neuron", "hidden": "hidden unit"}.get(
            str(steering.element), "unit"
        ),
        "" if found is None else found.name,
        width,
        [] if found is None else found.rows,
        spots,
        whole,
    )


# ------------------------------------------------------------------ transfer and repeating


def _transferred(board: Board) -> dict[tuple[str, str, str], float]:
    """Give the differences of all transfers in the metric's good direction, each by its measure."""
    return {
        (transfer.method, *key): cell.comparison.difference
        * board.scale(key[1])
        * (1 if cell.record.higher_is_better else -1)
        for transfer in board.transfers
        for key, cell in transfer.cells.items()
        if cell.comparison is not None and cell.comparison.difference is not None
    }


def _matrix(transfer: Transfer, board: Board, reach: float) -> Grid:
    """Make the table of a method's transfers; ``reach`` has the darkest shade."""
    gained, measure = _transferred(board), Measure(1, "", reach)

    def tile(key: tuple[str, str]) -> Tile | None:
        cell = transfer.cells.get(key)
        if cell is None or cell.comparison is None:
            return None
        return Tile(
            _shown(cell.comparison.difference, board.scale(key[1]), sign=True),
            shade(measure.level(gained.get((transfer.method, *key), 0.0))),
            key[0] == key[1],
            cell.arrow,
        )

    return Grid(
        transfer.method,
        "fitted on \\ scored on",
        transfer.targets,
        [(source, [tile((source, t)) for t in transfer.targets]) for source in transfer.sources],
    )


_Pairs = list[tuple[str, str]]


def _repeat(row: Row) -> tuple[list[str], _Pairs, list[tuple[str, _Pairs]]]:
    """Say how to repeat a row: its commands, what all its cells depend on, and the rest of each."""
    records = [cell.record for cell in row.cells.values()]
    commands = dict.fromkeys(command_of(record.command, row.method) for record in records)
    flat = [(record.task, _without_command(record)) for record in records]
    first = flat[0][1]
    common = {k: v for k, v in first.items() if all(mine.get(k) == v for _, mine in flat)}
    own = [(task, [(k, v) for k, v in mine.items() if k not in common]) for task, mine in flat]
    return list(commands), list(common.items()), own


def _without_command(record: Record) -> dict[str, str]:
    given = how_to_repeat(record)
    del given["command"]
    return {key: without_places(value) for key, value in _flat("", given)}


def _flat(name: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for index, inner in enumerate(value):
            yield from _flat(f"{name}[{index}]", inner)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
