"""The report as one HTML page that needs no network and no JavaScript."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import jinja2

from sadi_lmeval.records.steering import FitRecord, finite
from sadi_lmeval.reports.leaderboard import UNSTEERED, Board, Cell
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
_LEVELS = 5
"""Shades of a colour, on either side of 0."""
_REACH = 0.05
"""The least difference that has the darkest shade, so that noise alone is pale."""


class Tile(NamedTuple):
    """A coloured number: ``level`` from -5 (worse) through 0 to 5 (better)."""

    text: str
    level: int
    chosen: bool = False
    mark: str = ""


class Grid(NamedTuple):
    """A coloured table; a tile may be missing."""

    title: str
    corner: str
    columns: list[str]
    rows: list[tuple[str, list[Tile | None]]]


class Gap(NamedTuple):
    """A tuned setting on the documents that it was chosen on, and on those that were scored.

    Attributes:
        dev: difference from the unsteered model on the former, mean over folds.
        at: where ``dev``, ``test`` and 0 lie on a line of length 100.
        rule: that the setting was chosen by, with p_max of each fold; empty where no record has it.
    """

    method: str
    task: str
    setting: str
    objective: str
    dev: str
    test: str
    gap: str
    at: tuple[float, float, float]
    rule: str


class Map(NamedTuple):
    """The selected entries of a method on a task, summed over its fits.

    Attributes:
        columns: of the map.
        width: entries in a column; 1 unless binned.
        spots: (layer, column, how many are selected there).
    """

    title: str
    fits: int
    layers: int
    entries: int
    columns: int
    width: int
    most: int
    spots: list[tuple[int, int, int]]


class Bar(NamedTuple):
    """A distribution of answers: (answer, share, colour)."""

    name: str
    parts: list[tuple[str, float, int]]


def page(boards: Sequence[Board]) -> str:
    """Render ``report.html``."""
    sections = [_section(board) for board in boards]
    return _template().render(sections=sections, shown=shown)


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("sadi_lmeval.reports").joinpath("page.html.jinja").read_text("utf-8")
    return environment.from_string(source)


def _section(board: Board) -> dict[str, Any]:
    steered = [cell for row in board.rows for cell in row.cells.values() if row.method != UNSTEERED]
    return {
        "board": board,
        "conditions": conditions(board),
        "legend": legend(board),
        "majorities": majorities(board),
        "not_beating": not_beating(board),
        "gaps": _gaps(steered, board),
        "grids": _by_task(board, steered, lambda cell: _heatmaps(cell, board)),
        "maps": _by_task(board, steered, _maps),
        "answers": [(t, bars) for t in board.tasks if (bars := _bars(board, t)) is not None],
        "transfers": [
            _matrix(transfer.method, transfer.sources, transfer.targets, transfer.cells, board)
            for transfer in board.transfers
        ],
        "repeat": [(row.name, *_repeat(row.cells.values())) for row in board.rows],
    }


def _text(value: object) -> str:
    number = finite(value)
    return "–" if value is None else str(value) if number is None else f"{number:g}"


def _setting(cell: Cell) -> str:
    """Give the chosen parameters, of each fold if the folds differ: ``top_k 6/4, delta 9``."""
    steering = cell.record.steering
    chosen = [fit.chosen for fit in steering.fits] or [steering.setting]
    said = []
    for name in steering.axes:
        values = [_text(setting[name]) for setting in chosen]
        said.append(f"{name} {'/'.join(values if len(set(values)) > 1 else values[:1])}")
    return ", ".join(said)


def _level(value: float, reach: float) -> int:
    """Shade a number; by the square root, so that small differences show beside large."""
    return int(math.copysign(round(_LEVELS * math.sqrt(abs(value) / reach)), value))


def _gaps(cells: Iterable[Cell], board: Board) -> list[Gap]:
    tuned_cells = []
    for cell in cells:
        test = None if cell.comparison is None else cell.comparison.difference
        tuned = [fit for fit in cell.record.steering.fits if fit.tuning and fit.tuning.table]
        if not tuned or test is None:
            continue
        differences = []
        for fit in tuned:
            chosen, table = fit.chosen, fit.tuning.table if fit.tuning else []
            row = next((r for r in table if {n: r.get(n) for n in chosen} == chosen), {})
            differences.append(finite(row.get("difference")))
        known = [number for number in differences if number is not None]
        dev = sum(known) / len(known) if known and len(known) == len(differences) else None
        objective = ", ".join(dict.fromkeys(fit.tuning.objective for fit in tuned if fit.tuning))
        tuned_cells.append((cell, objective, dev if objective == "metric" else None, test))
    ends = [0.0]
    for cell, _, dev, test in tuned_cells:
        ends += [board.scale(cell.record.task) * n for n in (dev, test) if n is not None]
    low, span = min(ends), max(ends) - min(ends) or 1.0

    def at(number: float) -> float:
        return round(4 + 92 * (number - low) / span, 2)

    gaps = []
    for cell, objective, dev, test in tuned_cells:
        scale = board.scale(cell.record.task)
        gaps.append(
            Gap(
                cell.record.method,
                cell.record.task,
                _setting(cell),
                objective,
                shown(dev, scale, sign=True),
                shown(test, scale, sign=True),
                shown(None if dev is None else test - dev, scale, sign=True),
                (at(scale * (test if dev is None else dev)), at(scale * test), at(0)),
                _rule(cell),
            )
        )
    return gaps


def _rule(cell: Cell) -> str:
    tuned = [fit.tuning for fit in cell.record.steering.fits if fit.tuning and fit.tuning.rule]
    names = "/".join(dict.fromkeys(str(tuning.rule) for tuning in tuned))
    chances = ["n/a" if each.p_max is None else f"{each.p_max:.3f}" for each in tuned]
    return f"{names}, p_max {'/'.join(chances)}" if tuned else ""


def _by_task(
    board: Board, cells: Sequence[Cell], figures: Callable[[Cell], list[Any]]
) -> list[tuple[str, list[Any]]]:
    """Draw the figures of all cells, task by task."""
    tasks = [(t, [f for c in cells if c.record.task == t for f in figures(c)]) for t in board.tasks]
    return [(task, drawn) for task, drawn in tasks if drawn]


def _heatmaps(cell: Cell, board: Board) -> list[Grid]:
    grids = [_heatmap(cell, fit, board) for fit in cell.record.steering.fits]
    return [grid for grid in grids if grid is not None]


def _heatmap(cell: Cell, fit: FitRecord, board: Board) -> Grid | None:
    """Show differences from the unsteered model: a setting's last number across, others down."""
    names = list(fit.setting)
    if len(names) < 2 or fit.tuning is None:
        return None
    cells: dict[tuple[float, ...], float | None] = {}
    dropped: set[tuple[float, ...]] = set()
    for row in fit.tuning.table:
        numbers = [finite(row.get(name)) for name in names]
        if None not in numbers and any(numbers):  # all 0 is the unsteered model
            key = tuple(number for number in numbers if number is not None)
            cells[key] = finite(row.get("difference"))
            if (finite(row.get("documents")) or fit.tuning.documents) < fit.tuning.documents:
                dropped.add(key)
    if not cells:
        return None
    chosen = tuple(finite(value) for value in fit.chosen.values())
    reach = max((abs(number) for number in cells.values() if number is not None), default=0.0)
    scales = {"metric": board.scale(cell.record.task), "exact_match": 100}
    scale = scales.get(fit.tuning.objective, 1)  # a log-likelihood is no share
    reach = max(reach, _REACH)
    columns = sorted({key[-1] for key in cells})

    def tile(key: tuple[float, ...]) -> Tile | None:
        if key not in cells:
            return None
        number = cells[key]
        text = "×" if number is None else shown(number, scale, sign=True)
        text = f"({text})" if key in dropped else text
        return Tile(text, _level(number or 0.0, reach), key == chosen)

    title = f"{cell.record.method}, {_text(fit.source)}"
    if not any(chosen):
        title += ": unsteered chosen"
    return Grid(
        title,
        f"{', '.join(names[:-1])} \\ {names[-1]}",
        [_text(last) for last in columns],
        [
            (", ".join(map(_text, others)), [tile((*others, last)) for last in columns])
            for others in sorted({key[:-1] for key in cells})
        ],
    )


def _maps(cell: Cell) -> list[Map]:
    layers, entries = cell.record.steering.layers, cell.record.steering.entries
    # A map of more layers than any model has would be a hostile one.
    if not layers or not entries or not 1 <= layers <= 1000 or not 1 <= entries < 1 << 31:
        return []
    fits = [fit for fit in cell.record.steering.fits if fit.selected is not None]
    width = math.ceil(entries / _COLUMNS)
    spots: Counter[tuple[int, int]] = Counter()
    for fit in fits:
        for layer, entry, *_ in fit.selected or ():
            if 0 <= layer < layers and 0 <= entry < entries:
                spots[layer, entry // width] += 1
    if not spots:
        return []
    one = Map(
        cell.record.method,
        len(fits),
        layers,
        entries,
        math.ceil(entries / width),
        width,
        max(spots.values()),
        [(layer, column, count) for (layer, column), count in sorted(spots.items())],
    )
    return [one]


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


def _matrix(
    title: str,
    sources: Sequence[str],
    targets: Sequence[str],
    cells: Mapping[tuple[str, str], Cell],
    board: Board,
) -> Grid:
    compared = {k: c.comparison.difference for k, c in cells.items() if c.comparison is not None}
    # In the metric's good direction, each task by its own measure.
    gains = {
        key: number * board.scale(key[1]) * (1 if cells[key].record.higher_is_better else -1)
        for key, number in compared.items()
        if number is not None
    }
    reach = max([100 * _REACH, *(abs(gain) for gain in gains.values())])

    def tile(key: tuple[str, str]) -> Tile | None:
        if key not in compared:
            return None
        return Tile(
            shown(compared[key], board.scale(key[1]), sign=True),
            _level(gains.get(key, 0.0), reach),
            key[0] == key[1],
            cells[key].arrow,
        )

    return Grid(
        title,
        "fitted on \\ scored on",
        list(targets),
        [(source, [tile((source, target)) for target in targets]) for source in sources],
    )


def _repeat(
    cells: Iterable[Cell],
) -> tuple[list[tuple[str, str]], list[tuple[str, list[tuple[str, str]]]]]:
    """Say what a row depends on: what all its cells have in common, and the rest of each."""
    flat = [(cell.record.task, dict(_flat("", how_to_repeat(cell.record)))) for cell in cells]
    first = flat[0][1]
    common = {k: v for k, v in first.items() if all(mine.get(k) == v for _, mine in flat)}
    own = [(task, [(k, v) for k, v in mine.items() if k not in common]) for task, mine in flat]
    return list(common.items()), own


def _flat(name: str, value: Any) -> Iterable[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for index, inner in enumerate(value):
            yield from _flat(f"{name}[{index}]", inner)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
