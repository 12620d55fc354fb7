"""A leaderboard as files: Markdown, CSV, JSON and the metadata of a model card."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from huggingface_hub import CardData, EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from sadi_lmeval.controls import SHUFFLED
from sadi_lmeval.records.record import Record
from sadi_lmeval.reports.leaderboard import (
    NOT_BEATING,
    Average,
    Board,
    Cell,
    Elsewhere,
    Transfer,
    printable,
)
from sadi_lmeval.reports.significance import LEVEL

_LEGEND = (
    "In percent where all of a task's numbers lie between 0 and 1, ± standard error; bold: the "
    "best of a column. ↑* better and ↓* worse than the unsteered model on the same documents: "
    f"p below {LEVEL:g} after Holm's adjustment over the column (exact McNemar test where every "
    "value is 0 or 1, else sign-flip test of up to 20 documents that differ, else paired "
    "bootstrap; average: t test over documents, those of several tasks counted once)."
)


_OF_CONTROLS = (
    "Controls are adjusted among themselves. "
    f"{NOT_BEATING}: does not beat its own shuffled control (NAME{SHUFFLED}: the same method and "
    "choice, fitted to pairs whose labels are shuffled) on the same documents, by the same test: "
    f"p not below {LEVEL:g} after Holm's adjustment over the column's methods, or worse."
)
_OF_ELSEWHERE = (
    "Elsewhere: the mean difference from the unsteered model, ± standard error, on tasks that were "
    "scored with what is fitted to another one; each pair of tasks counts alike, and t test and "
    "adjustment are those of the average."
)


def legend(board: Board) -> str:
    """Say how to read a table, with what the number of its columns means for its arrows."""
    said = [_LEGEND]
    columns = len(board.tasks)
    if columns > 1:
        chance = 100 * (1 - (1 - LEVEL) ** columns)
        said.append(
            f"Were steering without effect, up to {100 * LEVEL:.0f} % of columns would "
            f"still have an arrow, and up to {chance:.0f} % of tables of {columns} columns."
        )
    if board.has_controls:
        said.append(_OF_CONTROLS)
    if board.has_elsewhere:
        said.append(_OF_ELSEWHERE)
    return " ".join(said)


def not_beating(board: Board) -> list[str]:
    """Say of each method where it does not beat its own shuffled control, a line each."""
    lines = []
    for row in board.rows:
        found = [(task, cell.control, board.scale(task)) for task, cell in row.cells.items()]
        if row.average is not None:
            found.append(("the average", row.average.control, 100))
        places = [
            f"{place} ({shown(control.difference, scale, sign=True)}, p {_p(control.p_holm)})"
            for place, control, scale in found
            if control is not None and not control.beats
        ]
        if places:
            lines.append(f"{row.method} does not beat {row.method}{SHUFFLED}: {', '.join(places)}")
    return lines


def _p(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2g}"


def how_to_repeat(record: Record) -> dict[str, Any]:
    """Give all that a cell depends on, as plain JSON values."""
    steering = record.steering.to_json()
    for fit in steering.get("fits", ()):
        fit.pop("selected", None)
        fit.pop("found", None)
        fit.get("tuning", {}).pop("table", None)
    return {
        "command": record.command,
        "model": record.model,
        "versions": record.versions,
        "seeds": record.seeds,
        "limit": record.limit,
        "num_fewshot": record.num_fewshot,
        "task_version": record.task_version,
        "steering": steering,
    }


def shown(number: float | None, scale: int, sign: bool = False) -> str:
    """Show a number as the tables do: in percent with one decimal, or as it is with three."""
    if number is None:
        return "n/a"
    # Rounded first, and 0 added, so that nothing is shown as -0.0.
    rounded = round(number * scale, 1 if scale == 100 else 3) + 0.0
    return f"{rounded:{'+' if sign and rounded else ''}.{1 if scale == 100 else 3}f}"


def _escaped(text: object) -> str:
    """Escape a name that came with the data, so that Markdown shows it and nothing else."""
    line = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*|[]" else c for c in line)


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown(boards: Sequence[Board]) -> str:
    """Render ``leaderboard.md``."""
    return "\n\n".join(part for board in boards for part in _sections(board)) + "\n"


def conditions(board: Board) -> str:
    """Say what all cells of a table have in common, in a line."""
    record = board.record
    revision = record.model.get("revision")
    return ", ".join(
        [
            *([f"revision {revision}"] if revision else []),
            f"{record.num_fewshot}-shot",
            "all documents" if record.limit is None else f"at most {record.limit:g} documents",
            f"run {record.run[:12]}",
        ]
    )


def majorities(board: Board) -> str:
    """Say what always giving the most frequent right answer would score, in a line."""
    shares = []
    for task in board.tasks:
        majority = board.majority(task)
        shares.append(
            f"{task} none"
            if majority is None
            else f"{task} {100 * majority[0]:.1f} % ({majority[1]})"
        )
    return f"Majority label: {', '.join(shares)}."


def _sections(board: Board) -> list[str]:
    averaged = any(row.average is not None for row in board.rows)
    heads = [f"{_escaped(t)} ({_escaped(board.metric(t))})" for t in board.tasks]
    heads += ["average"] if averaged else []
    heads += ["elsewhere"] if board.has_elsewhere else []
    lines = [_markdown_row(["method", *heads]), "|---|" + "---:|" * len(heads)]
    for row in board.rows:
        texts = []
        for task in board.tasks:
            cell = row.cells.get(task)
            if cell is None:
                texts.append("")
                continue
            best = cell.value is not None and cell.value == board.best(task)
            texts.append(_with_error(cell.value, cell.stderr, board.scale(task), best)
                         + _difference(cell, board.scale(task)))  # fmt: skip
        if averaged:
            texts.append("" if row.average is None else _average(row.average, board))
        if board.has_elsewhere:
            texts.append("" if row.elsewhere is None else _elsewhere(row.elsewhere))
        lines.append(_markdown_row([_escaped(row.name), *texts]))
    sections = [f"## {_escaped(board.model)}", _escaped(conditions(board))]
    if board.tasks:
        brackets = "In brackets: the difference from the unsteered model, and its adjusted p."
        sections += ["\n".join(lines), f"{legend(board)} {brackets}", _escaped(majorities(board))]
    failing = not_beating(board)
    if failing:
        heading = f"{NOT_BEATING} Not better than without information:"
        sections.append("\n".join([heading, "", *(f"- {_escaped(line)}" for line in failing)]))
    if board.warnings:
        sections.append("\n".join(["Warnings:", "", *(f"- {_escaped(w)}" for w in board.warnings)]))
    for transfer in board.transfers:
        sections += [
            f"### Transfer of {_escaped(transfer.method)}",
            "Difference from the unsteered model. Row: the task that the method was fitted and "
            "tuned on; column: the task that was scored.",
            "\n".join(_matrix(board, transfer)),
        ]
    return sections


def _with_error(value: float | None, stderr: float | None, scale: int, best: bool) -> str:
    text = shown(value, scale) + ("" if stderr is None else f" ± {shown(stderr, scale)}")
    return f"**{text}**" if best else text


def _difference(cell: Cell, scale: int) -> str:
    """Give the difference from the unsteered model, with its adjusted p and its mark."""
    compared = cell.comparison
    if None in (cell.value, cell.p_holm) or compared is None or compared.difference is None:
        return ""
    text = f" ({shown(compared.difference, scale, sign=True)}, p {cell.p_holm:.2g})"
    return text + (f" {cell.mark}" if cell.mark else "")


def _average(mean: Average, board: Board) -> str:
    value, gain = mean.value, mean.difference
    text = _with_error(value.value, value.stderr, 100, value.value == board.best_average())
    if gain is None:
        return text
    p = "" if mean.p_holm is None else f", p {mean.p_holm:.2g}"
    return f"{text} ({shown(gain.value, 100, sign=True)}{p}) {mean.mark}".rstrip()


def _elsewhere(mean: Elsewhere) -> str:
    gain = mean.difference
    error = "" if gain.stderr is None else f" ± {shown(gain.stderr, 100)}"
    p = "" if mean.p_holm is None else f" (p {mean.p_holm:.2g})"
    return f"{shown(gain.value, 100, sign=True)}{error}{p} {mean.mark}".rstrip()


def _matrix(board: Board, transfer: Transfer) -> list[str]:
    targets = transfer.targets
    lines = [
        _markdown_row(["fitted on \\ scored on", *map(_escaped, targets)]),
        "|---|" + "---:|" * len(targets),
    ]
    for source in transfer.sources:
        texts = []
        for target in targets:
            cell = transfer.cells.get((source, target))
            if cell is None or cell.comparison is None:
                texts.append("")
                continue
            text = shown(cell.comparison.difference, board.scale(target), sign=True)
            texts.append(f"{text} {cell.arrow}".rstrip())
        lines.append(_markdown_row([_escaped(source), *texts]))
    return lines


def _numbers(cell: Cell) -> dict[str, Any]:
    """Give every number of a cell, flat."""
    record, diagnosis = cell.record, cell.diagnosis
    compared = cell.comparison._asdict() if cell.comparison is not None else {}
    return {
        "method": record.method,
        "mask_from": record.mask_from,
        "task": record.task,
        "metric": record.metric,
        "higher_is_better": record.higher_is_better,
        "documents": len(record.documents),
        "value": cell.value,
        "stderr": cell.stderr,
        "difference": compared.get("difference"),
        "difference_stderr": compared.get("stderr"),
        "difference_low": compared.get("low"),
        "difference_high": compared.get("high"),
        "test": compared.get("test"),
        "paired": compared.get("documents"),
        "unpaired": compared.get("unpaired"),
        "p": compared.get("p"),
        "p_holm": cell.p_holm,
        "significant": cell.significant,
        "control_difference": None if cell.control is None else cell.control.difference,
        "control_p_holm": None if cell.control is None else cell.control.p_holm,
        "beats_control": None if cell.control is None else cell.control.beats,
        "majority": diagnosis.majority,
        "right_to_wrong": diagnosis.right_to_wrong,
        "wrong_to_right": diagnosis.wrong_to_right,
        "balanced_before": diagnosis.balanced_before,
        "balanced_after": diagnosis.balanced_after,
        "not_finite": diagnosis.not_finite,
        "seconds": record.seconds,
        "warning": diagnosis.warning,
    }


def comma_separated(boards: Sequence[Board]) -> str:
    """Render ``leaderboard.csv``: a line a model, method and task, transfers included."""
    lines = [
        {
            "model": board.model,
            "revision": board.record.model.get("revision"),
            "run": board.record.run,
            **_numbers(cell),
        }
        for board in boards
        for cell in board.cells
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _as_text(value) for name, value in line.items()} for line in lines)
    return text.getvalue()


def _as_text(value: Any) -> Any:
    """Quote a name that came with the data, so that no spreadsheet takes it for a formula."""
    formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if formula else value


def json_text(boards: Sequence[Board]) -> str:
    """Render ``leaderboard.json``: everything, and what is needed to repeat each cell."""

    def content(cell: Cell) -> dict[str, Any]:
        return {
            **_numbers(cell),
            "metrics": cell.record.metrics,
            "diagnosis": asdict(cell.diagnosis),
            "repeat": how_to_repeat(cell.record),
        }

    runs = [
        {
            "run": board.record.run,
            "model": board.model,
            "tasks": board.tasks,
            "rows": [
                {
                    "method": row.method,
                    "average": None if row.average is None else asdict(row.average),
                    "elsewhere": None if row.elsewhere is None else asdict(row.elsewhere),
                    "cells": {task: content(cell) for task, cell in row.cells.items()},
                }
                for row in board.rows
            ],
            "transfers": [
                {
                    "method": transfer.method,
                    "cells": [content(c) for c in transfer.cells.values() if c.record.mask_from],
                }
                for transfer in board.transfers
            ],
            "aside": [content(cell) for cell in board.aside],
            "not_beating_control": not_beating(board),
            "warnings": board.warnings,
        }
        for board in boards
    ]
    return json.dumps({"runs": runs}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def model_index(boards: Sequence[Board]) -> str:
    """Render ``model-index.yaml``: results as metadata of a model card, one entry a run."""
    entries = []
    for board in boards:
        results = [
            EvalResult(
                task_type="text-generation",
                dataset_type=cell.record.task,
                dataset_name=cell.record.task,
                metric_type=cell.record.metric,
                metric_name=f"{cell.record.metric} ({row.name})",
                metric_value=cell.value,
                metric_args={
                    "method": row.method,
                    "stderr": cell.stderr,
                    "num_fewshot": cell.record.num_fewshot,
                    "limit": cell.record.limit,
                },
            )
            for row in board.rows
            for cell in row.cells.values()
            if cell.value is not None
        ]
        entries += eval_results_to_model_index(board.model, results)
    card = CardData()
    card["model-index"] = entries
    return card.to_yaml() + "\n"
