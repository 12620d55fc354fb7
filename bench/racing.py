"""What the race costs and saves: the same pick with and without it, on recorded scores.

    python bench/racing.py FOLDER [FOLDER …] [--held-out 100] [--draws 100] [--rules sure]

A FOLDER holds a file TASK.npz a task, as ``bench/selection.py`` says. In every cell, an arm of a
task and a model, the held-out documents are drawn many times without replacement, in a new order,
and a rule takes a setting with and without the race. Prints, by rule: in how many of the draws it
takes the same one, and in how many the same or one as good on the scored documents; what the race
gains on the scored documents over no race, in points, with the standard error over cells; and the
share of documents under a setting that is left to be scored. Then the same of every cell.

At last, whether p_max keeps its level: the signs of every document's differences from the
unsteered model are flipped at random, those of all settings together, so that no setting is better
but for chance; in how many of the draws p_max is then at most a level, raced and not raced.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from selection import Cell, cells

from sadi_lmeval.options import RuleName
from sadi_lmeval.steering.race import looks, stays
from sadi_lmeval.steering.rules import LEVEL, RULES, Array, Pick, pick


class Found(NamedTuple):
    """Of every draw: the columns taken without and with the race, and the share that is scored."""

    without: list[int]
    raced: list[int]
    spent: list[float]


def raced(rule: RuleName, judged: Array) -> Array:
    """On how many documents the race has each column scored, ``[columns]``."""
    documents, columns, _ = judged.shape
    tried = np.full(columns, documents)
    for seen in looks(documents):
        so_far = np.minimum(tried, seen)
        tried[(so_far == seen) & ~stays(rule, judged[:seen], so_far, documents)] = seen
    return tried


def picked(rule: RuleName, judged: Array, tried: Array) -> Pick:
    value, margin, likelihood = np.moveaxis(judged, -1, 0)
    ranking = np.lexsort((-margin.mean(0).round(9), -value.mean(0).round(9))).tolist()
    return pick(rule, value, likelihood, ranking, tried)


def race(rule: RuleName, cell: Cell, size: int, draws: int, random: np.random.Generator) -> Found:
    every = np.stack([cell.accuracy, cell.margin, cell.likelihood], -1)
    found = Found([], [], [])
    for _ in range(draws):
        drawn = random.choice(len(every), min(size, len(every)), replace=False)
        judged = every[drawn]
        tried = raced(rule, judged)
        found.without.append(picked(rule, judged, np.full(len(tried), len(judged))).column)
        found.raced.append(picked(rule, judged, tried).column)
        found.spent.append(float(tried[1:].mean() / len(judged)))
    return found


def of_no_use(
    rule: RuleName, cell: Cell, size: int, draws: int, random: np.random.Generator
) -> list[tuple[float, float]]:
    """p_max with and without a race where no setting is better but for chance."""
    every = np.stack([cell.accuracy, cell.margin, cell.likelihood], -1)
    every -= every[:, :1]
    found = []
    for _ in range(draws):
        drawn = random.choice(len(every), min(size, len(every)), replace=False)
        judged = every[drawn] * random.choice((1.0, -1.0), (len(drawn), 1, 1))
        whole = np.full(judged.shape[1], len(judged))
        picks = [picked(rule, judged, tried) for tried in (raced(rule, judged), whole)]
        found.append((picks[0].p_max or 0.0, picks[1].p_max or 0.0))
    return found


LEVELS = (0.05, 0.1, LEVEL, 0.5)


def show(name: str, every: list[Cell], found: list[Found]) -> None:
    """Print a row of the table: cells weigh the same."""
    same, alike, more, spent = [], [], [], []
    for cell, of_cell in zip(every, found, strict=True):
        tested = 100 * cell.tested.mean(0)
        without, mine = (np.array(of_cell.without), np.array(of_cell.raced))
        gaps = tested[mine] - tested[without]
        same.append((without == mine).mean())
        alike.append(((without == mine) | (gaps == 0)).mean())
        more.append(gaps.mean())
        spent.append(np.mean(of_cell.spent))
    error = np.std(more, ddof=1) / np.sqrt(len(more)) if len(more) > 1 else 0.0
    print(
        f"| {name} | {100 * np.mean(same):.1f} % | {100 * np.mean(alike):.1f} % "
        f"| {np.mean(more):+.2f} ± {error:.2f} | {100 * np.mean(spent):.0f} % |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--rules", default="sure")
    given = parser.parse_args()
    unknown = sorted(set(given.rules.split(",")) - set(RULES))
    if unknown:
        parser.error(f"unknown rule {', '.join(unknown)}; rules are {', '.join(RULES)}")
    groups = {folder.name: list(cells(folder)) for folder in given.folders}
    said = "the same setting | or one as good | points more | scored"
    for rule in given.rules.split(","):
        print(f"\n| `{rule}` | {said} |\n|---|---|---|---|---|")
        by_cell = []
        for name, every in groups.items():
            random = np.random.default_rng(0)
            found = [race(rule, each, given.held_out, given.draws, random) for each in every]
            show(f"**{name}, {len(every)} cells**", every, found)
            by_cell += list(zip(every, found, strict=True))
        for each, mine in by_cell:
            show(f"{each.task}, {each.arm}", [each], [mine])
        print(f"\n| null data, `{rule}` |", *(f"p_max ≤ {level:g} |" for level in LEVELS))
        print(f"|---|{'---|' * len(LEVELS)}")
        random = np.random.default_rng(1)
        every = [each for of in groups.values() for each in of]
        size, draws = given.held_out, given.draws
        drawn = [chance for each in every for chance in of_no_use(rule, each, size, draws, random)]
        for name, values in zip(("raced", "not raced"), np.array(drawn).T, strict=True):
            shares = (f"{100 * (values <= level).mean():.1f} % |" for level in LEVELS)
            print(f"| {name}, {len(values)} draws |", *shares, flush=True)


if __name__ == "__main__":
    main()
