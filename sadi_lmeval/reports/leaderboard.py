"""A table of methods by tasks, made of records alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import PurePath
from typing import NamedTuple, NoReturn

from scipy.stats import sem

from sadi_lmeval.controls import PROMPT_ONLY, SHUFFLED, is_control
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


class AgainstControl(NamedTuple):
    """A method against its own control: the same, fitted to pairs whose labels are shuffled.

    Attributes:
        difference: mean of the document-wise differences; None where nothing can be paired.
        p_holm: its p after Holm's adjustment over all methods of the column that have a control.
        beats: whether it is in the metric's good direction, and p_holm below :data:`LEVEL`.
    """

    difference: float | None
    p_holm: float | None
    beats: bool


NOT_BEATING = "†"
"""Marks a method that does not beat its own shuffled control."""


@dataclass(frozen=True)
class Cell:
    """A method on a task.

    Attributes:
        record: that it is made of.
        value: of the metric, as the harness gives it.
        stderr: its standard error.
        comparison: with the unsteered model; None for that itself, and where it was not run.
        p_holm: the comparison's p after Holm's adjustment over the methods of the task; controls
            are adjusted among themselves.
        diagnosis: what changed in the answers.
        control: against the method's own shuffled control; None where that was not run.
    """

    record: Record
    value: float | None
    stderr: float | None
    comparison: PairedTest | None
    p_holm: float | None
    diagnosis: Diagnosis
    control: AgainstControl | None = None

    @property
    def significant(self) -> bool:
        return self.p_holm is not None and self.p_holm < LEVEL

    @property
    def better(self) -> bool:
        """Whether the difference is in the metric's good direction."""
        difference = self.comparison.difference if self.comparison is not None else None
        return (difference or 0.0) * (1 if self.record.higher_is_better else -1) > 0

    @property
    def arrow(self) -> str:
        return ("↑*" if self.better else "↓*") if self.significant else ""

    @property
    def mark(self) -> str:
        return _with_dagger(self.arrow, self.control)


@dataclass(frozen=True)
class Average:
    """The mean over tasks, each of which counts alike.

    Attributes:
        value: of the metrics, with its error.
        difference: from the unsteered model, with its error and p; None for that itself.
        p_holm: the difference's p after Holm's adjustment over the rows that have one; controls
            are adjusted among themselves.
        control: against the row's own shuffled control; None where that has no average.
    """

    value: Mean
    difference: Mean | None
    p_holm: float | None = None
    control: AgainstControl | None = None

    @property
    def arrow(self) -> str:
        return _arrow(self.difference, self.p_holm)

    @property
    def mark(self) -> str:
        return _with_dagger(self.arrow, self.control)


@dataclass(frozen=True)
class Elsewhere:
    """What steering for some tasks does to others: its side effects.

    Attributes:
        difference: from the unsteered model, the mean over every task that was scored with what is
            fitted to another one; each pair of tasks counts alike.
        p_holm: its p after Holm's adjustment over the rows that have one; controls are adjusted
            among themselves.
    """

    difference: Mean
    p_holm: float | None = None

    @property
    def mark(self) -> str:
        return _arrow(self.difference, self.p_holm)


def _arrow(difference: Mean | None, p_holm: float | None) -> str:
    if difference is None or p_holm is None or p_holm >= LEVEL:
        return ""
    return "↑*" if difference.value > 0 else "↓*"


def _with_dagger(arrow: str, control: AgainstControl | None) -> str:
    fails = control is not None and not control.beats
    return " ".join(filter(None, (arrow, NOT_BEATING if fails else "")))


@dataclass(frozen=True)
class Row:
    """A method: its cell of each task that it was run on, and their average if that is all.

    Attributes:
        elsewhere: None where it was scored on no other tasks, or some number is missing.
    """

    method: str
    cells: dict[str, Cell]
    average: Average | None
    elsewhere: Elsewhere | None = None

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
        aside: cells of tasks that are no columns, as methods are fitted to others alone: those of
            the rows that are fitted to none.
    """

    record: Record
    tasks: list[str]
    rows: list[Row]
    transfers: list[Transfer]
    aside: list[Cell] = field(default_factory=list)

    @property
    def model(self) -> str:
        """Name the model; of one in a folder of the machine the folder's own name."""
        name = str(self.record.model.get("model", "unknown model"))
        return PurePath(name).name if PurePath(name).is_absolute() else name

    @property
    def cells(self) -> list[Cell]:
        """All there are, each once."""
        main = [cell for row in self.rows for cell in row.cells.values()]
        moved = [c for t in self.transfers for c in t.cells.values() if c.record.mask_from]
        return main + moved + self.aside

    @property
    def warnings(self) -> list[str]:
        of_cells = [cell.diagnosis.warning for cell in self.cells]
        of_tasks = [self._unlike_held_out(task) for task in self.tasks]
        return [warning for warning in (*of_cells, *of_tasks) if warning is not None]

    @property
    def has_controls(self) -> bool:
        """Whether some method is compared with its own control."""
        return any(cell.control is not None for cell in self.cells)

    @property
    def has_elsewhere(self) -> bool:
        """Whether some row was scored on tasks that it is not fitted to."""
        return any(row.elsewhere is not None for row in self.rows)

    def _unlike_held_out(self, task: str) -> str | None:
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
    moved = [record for record in records if record.mask_from is not None]
    unsteered = {record.task: record for record in main if record.method == UNSTEERED}
    fitted = {record.task for record in main if record.method not in (UNSTEERED, PROMPT_ONLY)}
    side = {record.task for record in moved} - fitted
    tasks = sorted({record.task for record in main} - side)
    methods = sorted({record.method for record in main}, key=_order)
    cells = {(r.method, r.task): _cell(r, unsteered.get(r.task)) for r in main}
    for task in (*tasks, *side):
        column = [key for key in cells if key[1] == task]
        found = _adjusted([cells[key] for key in column])
        cells |= zip(column, _with_controls(found), strict=True)
    rows = [Row(m, {t: cells[m, t] for t in tasks if (m, t) in cells}, None) for m in methods]
    transfers = [
        _transfer(method, [record for record in moved if record.method == method], unsteered, cells)
        for method in sorted({record.method for record in moved})
    ]
    aside = [cell for (_, task), cell in cells.items() if task in side]
    board = Board(records[0], tasks, rows, transfers, aside)

    def averaged(names: Iterable[str]) -> bool:
        return all(
            board.scale(cell.record.task) == 100 and cell.record.higher_is_better
            for cell in board.cells
            if cell.record.task in names
        )

    if len(tasks) > 1 and averaged(tasks):
        rows = _with_averages(rows, unsteered, len(tasks))
    if moved and averaged({record.task for record in moved}):
        rows = _with_elsewhere(rows, [*(r for r in main if r.task in side), *moved], unsteered)
    return replace(board, rows=rows)


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


def _adjusted(column: Sequence[Cell]) -> list[Cell]:
    p = [None if cell.comparison is None else cell.comparison.p for cell in column]
    adjusted = _by_family([cell.record.method for cell in column], p)
    return [replace(cell, p_holm=value) for cell, value in zip(column, adjusted, strict=True)]


def _by_family(methods: Sequence[str], p: Sequence[float | None]) -> list[float | None]:
    """Adjust p by Holm, methods and controls each among themselves.

    So to look at controls costs the methods none of their power.
    """
    of_controls = [is_control(method) for method in methods]
    found: list[float | None] = [None] * len(p)
    for family in (False, True):
        places = [place for place, mine in enumerate(of_controls) if mine == family]
        for place, value in zip(places, holm([p[place] for place in places]), strict=True):
            found[place] = value
    return found


def _with_controls(column: Sequence[Cell]) -> list[Cell]:
    """Compare each method of a column with its own shuffled control, where that is there."""
    by_method = {cell.record.method: cell.record for cell in column}
    tests: list[PairedTest | None] = []
    for cell in column:
        control = by_method.get(cell.record.method + SHUFFLED)
        same = control is not None and control.documents == cell.record.documents
        tests.append(
            compare_paired(cell.record.values, control.values)
            if control is not None and same
            else None
        )
    adjusted = holm([None if test is None else test.p for test in tests])
    return [
        cell
        if test is None
        else replace(
            cell, control=_against(test.difference, p, 1 if cell.record.higher_is_better else -1)
        )
        for cell, test, p in zip(column, tests, adjusted, strict=True)
    ]


def _against(difference: float | None, p_holm: float | None, sign: int = 1) -> AgainstControl:
    better = p_holm is not None and p_holm < LEVEL and (difference or 0.0) * sign > 0
    return AgainstControl(difference, p_holm, better)


def _average(row: Row, unsteered: Mapping[str, Record], tasks: int) -> Average | None:
    """Average a row that has a finite number of each document of every task."""
    records = [cell.record for cell in row.cells.values()]
    if len(records) != tasks or any(None in record.values for record in records):
        return None
    value = mean_over_tasks([_by_document(r, r.values) for r in records])
    others = [unsteered.get(record.task) for record in records]
    known = [other for other in others if other is not None and None not in other.values]
    if row.method == UNSTEERED or len(known) < len(records):
        return Average(value, None)
    return Average(value, _mean_difference(zip(records, known, strict=True)))


def _mean_difference(pairs: Iterable[tuple[Record, Record]]) -> Mean:
    """Average the document-wise differences of records from others, all of them known."""
    return mean_over_tasks(
        [
            _by_document(
                one,
                [(a or 0.0) - (b or 0.0) for a, b in zip(one.values, other.values, strict=True)],
            )
            for one, other in pairs
        ]
    )


def _by_document(record: Record, values: Sequence[float | None]) -> dict[str, list[float]]:
    numbers: dict[str, list[float]] = {}
    for document, value in zip(record.documents, values, strict=True):
        if value is not None:
            numbers.setdefault(document, []).append(value)
    return numbers


def _with_averages(rows: Sequence[Row], unsteered: Mapping[str, Record], tasks: int) -> list[Row]:
    averages = [_average(row, unsteered, tasks) for row in rows]
    p = [None if a is None or a.difference is None else a.difference.p for a in averages]
    adjusted = _by_family([row.method for row in rows], p)
    whole = {row.method: row for row, a in zip(rows, averages, strict=True) if a is not None}
    against: list[Mean | None] = []
    for row in rows:
        control = whole.get(row.method + SHUFFLED)
        pairs = [
            (cell.record, control.cells[task].record)
            for task, cell in row.cells.items()
            if control is not None and row.method in whole
        ]
        against.append(_mean_difference(pairs) if pairs else None)
    p_control = holm([None if each is None else each.p for each in against])
    return [
        replace(
            row,
            average=None
            if mean is None
            else replace(
                mean,
                p_holm=own,
                control=None if test is None else _against(test.value, p_test),
            ),
        )
        for row, mean, own, test, p_test in zip(
            rows, averages, adjusted, against, p_control, strict=True
        )
    ]


def _with_elsewhere(
    rows: Sequence[Row], records: Sequence[Record], unsteered: Mapping[str, Record]
) -> list[Row]:
    """Average what each row does to tasks that it is not fitted to.

    Args:
        rows: of the table.
        records: of those tasks.
        unsteered: by task.
    """
    every = {(record.mask_from, record.task) for record in records if record.mask_from is not None}
    found: list[Elsewhere | None] = []
    for row in rows:
        mine = [record for record in records if record.method == row.method]
        pairs = [(r, unsteered[r.task]) for r in mine if r.task in unsteered]
        of_fits = {(record.mask_from, record.task) for record in mine}
        # What is fitted to no task has one record of each.
        expected = {(None, task) for _, task in every} if row.method == PROMPT_ONLY else every
        whole = of_fits == expected and len(pairs) == len(expected)
        known = all(None not in record.values for pair in pairs for record in pair)
        fit = whole and known and row.method != UNSTEERED
        found.append(Elsewhere(_mean_difference(pairs)) if fit else None)
    p = [None if each is None else each.difference.p for each in found]
    adjusted = _by_family([row.method for row in rows], p)
    return [
        replace(row, elsewhere=None if each is None else replace(each, p_holm=own))
        for row, each, own in zip(rows, found, adjusted, strict=True)
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
