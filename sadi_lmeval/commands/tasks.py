"""``sadi-lmeval tasks``: what is covered, with recipes, splits and data."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WIDTH = 100
"""Columns that the list fits in."""
GAP = "  "


def add(commands: Any) -> None:
    """Describe the command's options."""
    tasks = commands.add_parser(
        "tasks",
        help="list the covered benchmarks with recipe, splits and whether their data is reachable",
        description="List every covered benchmark: harness tasks, the recipe of their pairs, where "
        "the pairs come from, what is scored, and whether the data is available now. Any other "
        "task with choices or targets works by the default recipe.",
    )
    tasks.add_argument("--include_path", type=Path, help="a folder with your own benchmark files")
    tasks.add_argument(
        "--offline", action="store_true", help="do not check whether the data is available"
    )
    tasks.set_defaults(run=run)


def run(given: argparse.Namespace, rest: object, command: object) -> None:
    from tqdm import tqdm

    from sadi_lmeval.errors import UserError
    from sadi_lmeval.pairs.coverage import covered, folded, reached, stay_offline, without_network

    if given.include_path is not None and not given.include_path.is_dir():
        raise UserError(f"--include_path {given.include_path}: no such folder")
    rows = folded(covered([given.include_path] if given.include_path else []))
    if not given.offline and without_network():
        print("The hub does not answer: only what is here already is found.", file=sys.stderr)
        stay_offline()
    missing = {} if given.offline else reached(rows, lambda names: tqdm(names, desc="Data sets"))
    lines: dict[str, list[tuple[str, ...]]] = {}
    for row in rows:
        count = f" ({len(row.tasks)})" if len(row.tasks) > 1 else ""
        if not row.tasks:
            data = "not in this lm-eval"
        elif not row.datasets:
            data = "comes with the task"
        elif given.offline:
            data = row.datasets[0].path
        else:
            data = _reachable([missing[dataset] for dataset in row.datasets])
        recipe = row.recipe or "default"
        cells = (row.named + count, recipe, row.pairs_from, row.scored, data)
        lines.setdefault(row.benchmark, []).append(cells)
    print(_table(("tasks", "recipe", "pairs from", "scored", "data"), lines))
    reasons: dict[str, str] = {}
    for dataset, reason in missing.items():
        if reason:
            reasons.setdefault(dataset.path, reason)
    if reasons:
        print("\nNot available:")
    for path, reason in reasons.items():
        told = reason if path in reason else f"{path}: {reason}"
        print(textwrap.fill(told, WIDTH, subsequent_indent="  "))


def _reachable(reasons: list[str]) -> str:
    """Say how many data sets are available: those without a reason why not."""
    there = reasons.count("")
    if there == len(reasons):
        return "yes"
    return f"{there} of {len(reasons)}" if there else "no"


def _table(headers: tuple[str, ...], lines: Mapping[str, Sequence[tuple[str, ...]]]) -> str:
    """Write a table that fits the width, each benchmark's name above its rows.

    Args:
        headers: of the columns.
        lines: the cells of each benchmark; the last one takes several lines where it is long.
    """
    indented = [headers, *((f"  {row[0]}", *row[1:]) for rows in lines.values() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*indented, strict=True)][:-1]
    left = sum(widths) + len(GAP) * len(widths)

    def written(row: tuple[str, ...]) -> list[str]:
        start = "".join(f"{cell:{width}}{GAP}" for cell, width in zip(row, widths, strict=False))
        first, *more = textwrap.wrap(row[-1], max(WIDTH - left, 16))
        return [start + first, *(" " * left + each for each in more)]

    text = written(headers)
    for benchmark, rows in lines.items():
        text += ["", benchmark]
        for row in rows:
            text += written((f"  {row[0]}", *row[1:]))
    return "\n".join(text)
