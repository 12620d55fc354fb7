"""``sadi-lmeval tasks``: what is covered, with recipes, splits and data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


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
    from pytablewriter import MarkdownTableWriter
    from tqdm import tqdm

    from sadi_lmeval.errors import UserError
    from sadi_lmeval.pairs.coverage import covered, reached, stay_offline, without_network

    if given.include_path is not None and not given.include_path.is_dir():
        raise UserError(f"--include_path {given.include_path}: no such folder")
    rows = covered([given.include_path] if given.include_path else [])
    if not given.offline and without_network():
        print("The hub does not answer: only what is here already is found.", file=sys.stderr)
        stay_offline()
    missing = {} if given.offline else reached(rows, lambda names: tqdm(names, desc="Data sets"))
    table = []
    for row in rows:
        count = f" ({len(row.tasks)})" if len(row.tasks) > 1 else ""
        if not row.tasks:
            data = "not in this release of lm-eval"
        elif not row.datasets:
            data = "comes with the task"
        elif given.offline:
            data = row.datasets[0].path
        else:
            data = _reachable([missing[dataset] for dataset in row.datasets])
        recipe = row.recipe or "default"
        cells = (row.benchmark, row.named + count, recipe, row.pairs_from, row.scored, data[:80])
        table.append(cells)
    headers = ["benchmark", "tasks", "recipe", "pairs from", "scored", "data"]
    print(MarkdownTableWriter(headers=headers, value_matrix=table).dumps())


def _reachable(reasons: list[str]) -> str:
    """Say how many data sets are available: those without a reason why not."""
    there = reasons.count("")
    if there == len(reasons):
        return "yes"
    first = next(reason for reason in reasons if reason)
    return f"{there} of {len(reasons)}" if there else f"no: {first}"
