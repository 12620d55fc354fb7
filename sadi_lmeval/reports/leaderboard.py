"""A table of methods by tasks, made of records alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, NoReturn

from scipy.stats import sem

from sadi_lmeval.errors import UserError
from sadi_lmeval.records.record import Record
from sadi_lmeval.records.steering import UnsteeredRecord, finite
from sadi_lmeval.reports.diagnostics import Diagnosis, diagnose
from sadi_lmeval.reports.significance import (
    LEVEL,
    Mean,
    PairedTest,
    compare_paired,
    holm,
    mean_over_tasks,
)

UNSTEERED = "none"
"""The method of the row that all others are compared with."""


@dataclass(frozen=True)
class Cell:
    """A method on a task.

    Attributes:
        record: that it is made of.
        value: of the metric, as the harness gives it.
        stderr: its standard error.
        comparison: with the unsteered model; None for that itself, and where it was not run.
        p_holm: the comparison's p after Holm's adjustment over the steered methods of the task.
        diagnosis: what changed in the answers.
    """

    record: Record
    value: float | None
    stderr: float | None
    comparison: PairedTest | None
    p_holm: float | None
    diagnosis: Diagnosis

    @property
    def significant(self) -> bool:
        return self.p_holm is not None and self.p_holm < LEVEL

    @property
    def better(self) -> bool:
        """Whether the difference is in the metric's good direction."""
        difference = self.comparison.difference if self.comparison is not None else None
        return (difference or 0.0) * (1 if self.record.higher_is_better else -1) > 0

    @property
    def mark(self) -> str:
        return ("↑*" if self.better else "↓*") if self.significant else ""


@dataclass(frozen=True)
class Average:
    """The mean over tasks, each of which counts alike.

    Attributes:
        value: of the metrics, with its error.
        difference: from the unsteered model, with its error and p; None for that itself.
        p_holm: the difference's p after Holm's adjustment over the rows that have one.
    """

    value: Mean
    difference: Mean | None
    p_holm: float | None = None

    @property
    def mark(self) -> str:
        if self.difference is None or self.p_holm is None or self.p_holm >= LEVEL:
            return ""
        return "↑*" if self.difference.value > 0 else "↓*"


@dataclass(frozen=True)
class Row:
    """A method: its cell of each task that it was run on, and their average if that is all."""

    method: str
    cells: dict[str, Cell]
    average: Average | None

    @property
    def name(self) -> str:
        return "unsteered" if self.method == UNSTEERED else self.method


@dataclass(frozen=True)
class Transfer:
    """A method fitted and tuned on one task and scored on another.

    Attributes:
        method: its name.
        cells: by (task that it was fitted on, task that was scored). Those of one task both ways
            are the main table's; Holm's adjustment of the others is over all of them.
    """

    method: str
    cells: dict[tuple[str, str], Cell]

    @property
    def sources(self) -> list[str]:
        return sorted({source for source, _ in self.cells})

    @property
    def targets(self) -> list[str]:
        return sorted({target for _, target in self.cells})


@dataclass(frozen=True)
class Board:
    """The table of one run: of what may be compared.

    Attributes:
        record: any of them, for what they have in common.
        tasks: the columns.
        rows: the unsteered model first.
        transfers: one a method that has any.
    """

    record: Record
    tasks: list[str]
    rows: list[Row]
    transfers: list[Transfer]

    @property
    def model(self) -> str:
        return str(self.record.model.get("model", "unknown model"))

    @property
    def cells(self) -> list[Cell]:
        """All there are, each once."""
        main = [cell for row in self.rows for cell in row.cells.values()]
        moved = [c for t in self.transfers for c in t.cells.values() if c.record.mask_from]
        return main + moved

    @property
    def warnings(self) -> list[str]:
        of_cells = [cell.diagnosis.warning for cell in self.cells]
        of_tasks = [self._elsewhere(task) for task in self.tasks]
        return [warning for warning in (*of_cells, *of_tasks) if warning is not None]

    def _elsewhere(self, task: str) -> str | None:
        """Say where the held-out documents are easier or harder than the scored ones."""
        column = {row.method: row.cells[task] for row in self.rows if task in row.cells}
        scored, tuned = column.get(UNSTEERED), [_held_out(cell) for cell in column.values()]
        held_out = next((each for each in tuned if each is not None), None)
        if scored is None or scored.value is None or scored.stderr is None or held_out is None:
            return None
        both = UnsteeredRecord(*held_out, scored.value, scored.stderr, len(scored.record.values))
        return None if both.warning is None else f"{task}: {both.warning}"

    def scale(self, task: str) -> int:
        """Give 100 for a task whose numbers are shown in percent: all lie between 0 and 1."""
        return self._scales[task]

    @cached_property
    def _scales(self) -> dict[str, int]:
        scales: dict[str, int] = {}
        for cell in self.cells:
            numbers = (cell.value, *cell.record.values)
            share = all(number is None or 0 <= number <= 1 for number in numbers)
            scales[cell.record.task] = min(scales.get(cell.record.task, 100), 100 if share else 1)
        return scales

    def metric(self, task: str) -> str:
        return next(cell.record.metric for cell in self.cells if cell.record.task == task)

    def best(self, task: str) -> float | None:
        """Give the best value of a column; None where all are alike."""
        mine = [row.cells[task] for row in self.rows if task in row.cells]
        values = {cell.value for cell in mine if cell.value is not None}
        if len(values) < 2:
            return None
        return max(values) if mine[0].record.higher_is_better else min(values)

    def best_average(self) -> float | None:
        values = {row.average.value.value for row in self.rows if row.average is not None}
        return max(values) if len(values) > 1 else None

    def majority(self, task: str) -> tuple[float, str] | None:
        """Give the share of the most frequent right answer, and that answer."""
        for cell in self.cells:
            gold = cell.diagnosis.gold
            if cell.record.task == task and gold:
                answer = max(gold, key=lambda name: gold[name])
                return gold[answer], answer
        return None


def boards_of(records: Iterable[Record]) -> list[Board]:
    """Make one table a run.

    Raises:
        UserError: a method and the unsteered model were not scored on the same documents, or two
            records of a task were not made by the same definitions and pairs.
    """
    by_run: dict[str, list[Record]] = {}
    for record in records:
        by_run.setdefault(record.run, []).append(record)
    return [_board(mine) for mine in by_run.values()]


def _board(records: Sequence[Record]) -> Board:
    _refuse_disagreement(records)
    main = [record for record in records if record.mask_from is None]
    unsteered = {record.task: record for record in main if record.method == UNSTEERED}
    tasks = sorted({record.task for record in main})
    methods = sorted({record.method for record in main}, key=_order)
    cells = {(r.method, r.task): _cell(r, unsteered.get(r.task)) for r in main}
    for task in tasks:
        column = [key for key in cells if key[1] == task]
        cells |= zip(column, _adjusted([cells[key] for key in column]), strict=True)
    rows = [Row(m, {t: cells[m, t] for t in tasks if (m, t) in cells}, None) for m in methods]
    moved = [record for record in records if record.mask_from is not None]
    transfers = [
        _transfer(method, [record for record in moved if record.method == method], unsteered, cells)
        for method in sorted({record.method for record in moved})
    ]
    board = Board(records[0], tasks, rows, transfers)
    fit = len(tasks) > 1 and all(
        board.scale(task) == 100 and all(r.higher_is_better for r in main) for task in tasks
    )
    if not fit:
        return board
    return replace(board, rows=_with_averages(rows, unsteered, len(tasks)))


def _order(method: str) -> tuple[bool, str]:
    """Put the unsteered model first."""
    return method != UNSTEERED, method


def _refuse_disagreement(records: Sequence[Record]) -> None:
    """Refuse records of one task that were made by different definitions or pairs.

    Raises:
        UserError: naming two of them, and what differs.
    """
    of_task: dict[str, Record] = {}
    of_pairs: dict[tuple[str, str | None], Record] = {}
    for record in records:
        first = of_task.setdefault(record.task, record)
        if record.task_digest != first.task_digest:
            _disagree(record, first, "definitions of the task")
        if not record.pairs_digests:
            continue
        first = of_pairs.setdefault((record.task, record.mask_from), record)
        if record.steering.recipe_digest != first.steering.recipe_digest:
            _disagree(record, first, "recipes")
        if record.pairs_digests != first.pairs_digests:
            _disagree(record, first, "pairs")


def _disagree(record: Record, other: Record, what: str) -> NoReturn:
    message = (
        f"{record.task}: {record.method} and {other.method} are of different {what}, and cannot be "
        "compared; run both again in a new folder"
    )
    raise UserError(printable(message))


def _cell(record: Record, unsteered: Record | None) -> Cell:
    steered = record.method != UNSTEERED or record.mask_from is not None
    if unsteered is not None and (
        (record.documents, record.metric) != (unsteered.documents, unsteered.metric)
    ):
        message = (
            f"{record.task}: {record.method} ({len(record.documents)} documents, {record.metric}) "
            f"and {unsteered.method} ({len(unsteered.documents)} documents, {unsteered.metric}) "
            "were not scored on the same documents with the same metric, and cannot be compared; "
            "run both again"
        )
        raise UserError(printable(message))
    value, stderr = record.metrics.get(record.metric, [None, None])
    known = [number for number in record.values if number is not None]
    if stderr is None and len(known) > 1 and len(known) == len(record.values):
        stderr = float(sem(known))
    return Cell(
        record,
        value,
        stderr,
        compare_paired(record.values, unsteered.values) if steered and unsteered else None,
        None,
        diagnose(record, unsteered),
    )


class _HeldOut(NamedTuple):
    """The unsteered model's mean on the held-out documents of all fits, and its standard error."""

    value: float
    stderr: float
    documents: int


def _held_out(cell: Cell) -> _HeldOut | None:
    """Give what tuning saw of the unsteered model; None where not judged by the cell's metric."""
    choices = [fit.tuning for fit in cell.record.steering.fits]
    tables = [c.table for c in choices if c is not None and c.objective == "metric" and c.table]
    scores = [finite(table[0].get("score")) for table in tables]
    errors = [finite(table[0].get("stderr")) for table in tables]
    known = [score for score in scores if score is not None]
    sound = [error for error in errors if error is not None]
    if not known or len(known) != len(choices) or len(sound) != len(choices):
        return None
    sign = 1 if cell.record.higher_is_better else -1
    return _HeldOut(
        sign * sum(known) / len(known),
        math.hypot(*sound) / len(sound),
        sum(choice.documents for choice in choices if choice is not None),
    )


def _adjusted(family: Sequence[Cell]) -> list[Cell]:
    adjusted = holm([None if c.comparison is None else c.comparison.p for c in family])
    return [replace(cell, p_holm=p) for cell, p in zip(family, adjusted, strict=True)]


def _average(row: Row, unsteered: Mapping[str, Record], tasks: int) -> Average | None:
    """Average a row that has a finite number of each document of every task."""
    records = [cell.record for cell in row.cells.values()]
    if len(records) != tasks or any(None in record.values for record in records):
        return None
    value = mean_over_tasks([_by_document(r, r.values) for r in records])
    others = [unsteered.get(record.task) for record in records]
    if row.method == UNSTEERED or any(o is None or None in o.values for o in others):
        return Average(value, None)
    differences = [
        _by_document(r, [(a or 0.0) - (b or 0.0) for a, b in zip(r.values, o.values, strict=True)])
        for r, o in zip(records, others, strict=True)
        if o is not None
    ]
    return Average(value, mean_over_tasks(differences))


def _by_document(record: Record, values: Sequence[float | None]) -> dict[str, list[float]]:
    numbers: dict[str, list[float]] = {}
    for document, value in zip(record.documents, values, strict=True):
        if value is not None:
            numbers.setdefault(document, []).append(value)
    return numbers


def _with_averages(rows: Sequence[Row], unsteered: Mapping[str, Record], tasks: int) -> list[Row]:
    averages = [_average(row, unsteered, tasks) for row in rows]
    p = holm([None if a is None or a.difference is None else a.difference.p for a in averages])
    return [
        replace(row, average=None if mean is None else replace(mean, p_holm=adjusted))
        for row, mean, adjusted in zip(rows, averages, p, strict=True)
    ]


def _transfer(
    method: str,
    records: Sequence[Record],
    unsteered: dict[str, Record],
    main: dict[tuple[str, str], Cell],
) -> Transfer:
    moved = _adjusted([_cell(record, unsteered.get(record.task)) for record in records])
    cells = {(str(cell.record.mask_from), cell.record.task): cell for cell in moved}
    for task in sorted({task for pair in cells for task in pair}):
        if (method, task) in main:
            cells.setdefault((task, task), main[method, task])
    return Transfer(method, cells)


def printable(text: object) -> str:
    """Make one line without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in str(text))
