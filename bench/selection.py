"""Rules of choosing a setting, compared by what they gain on documents that they have not seen.

    python bench/selection.py --found FOLDER [--checked FOLDER …] [--picture FILE]
        [--held-out 100] [--draws 200]

Prints a table of the rules (those with a name of the package in quotes) on the tasks that the
default was found on, and one on tasks, or models, that had no say in it; then what the rules with a
name gain on each task.

A FOLDER holds a file TASK.npz a task, with the scores of many settings, as
``bench/selection_collect.py`` writes them:

    settings            JSON: of each arm the list of its settings
    dev, test           float [documents, 1 + settings, choices]: log-likelihoods of the choices of
                        held-out and of scored documents; -inf where a document has fewer choices.
                        Column 0 is the unsteered model, the arms' settings follow in order
    dev_gold, test_gold int [documents]: the right choice

A cell is an arm of a task and a model. In every cell a rule chooses on many held-out sets, drawn
without replacement out of the held-out documents, and gets the accuracy of what it chose over the
unsteered model's, on all scored documents. The standard errors are those of 1,000 bootstrap draws
of the held-out sets and, within a task, of the scored documents; that there are only so many
held-out documents to draw from, and one fit, is not in them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sadi_lmeval.steering.rules import (
    LEVEL,
    RULES,
    Gains,
    Rule,
    backed,
    beyond,
    either,
    likely,
    p_max,
    sure,
)

Array = np.ndarray[Any, Any]
BOOTSTRAPS = 1000
WORST = -1.0
"""Points that no cell may lose."""


SURELY = 0.95
"""Share of the bootstrap draws of a cell that are below a bound where it surely is."""


class Cell(NamedTuple):
    """An arm of a task and a model: scores ``[documents, 1 + settings]``.

    Attributes:
        task: with the folder's name, which tells models apart.
        settings: their numbers, ``[settings, axes]``.
    """

    task: str
    arm: str
    accuracy: Array
    likelihood: Array
    margin: Array
    tested: Array
    settings: Array


def scores(choices: Array, gold: Array) -> tuple[Array, Array, Array]:
    """Accuracy, log-likelihood of the right choice among the choices, and its margin."""
    rows = np.arange(len(choices))
    right = choices[rows, :, gold]
    wrong = choices.copy()
    wrong[rows, :, gold] = -np.inf
    accuracy = (choices.argmax(-1) == gold[:, None]).astype(float)
    return accuracy, right - np.logaddexp.reduce(choices, axis=-1), right - wrong.max(-1)


def cells(folder: Path) -> Iterator[Cell]:
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as data:
            held_out = scores(data["dev"].astype(float), data["dev_gold"])
            tested, *_ = scores(data["test"].astype(float), data["test_gold"])
            start = 1
            for arm, settings in json.loads(str(data["settings"])).items():
                columns = np.r_[0, start : start + len(settings)]
                start += len(settings)
                accuracy, likelihood, margin = (table[:, columns] for table in held_out)
                numbers = np.array(settings)
                task = f"{folder.name}/{path.stem}"
                yield Cell(task, arm, accuracy, likelihood, margin, tested[:, columns], numbers)


def smoothing(cell: Cell) -> Array:
    """Means over each setting and its neighbours of the grid, ``[1 + settings, 1 + settings]``."""
    at = np.stack([np.unique(axis, return_inverse=True)[1] for axis in cell.settings.T], 1)
    near = (np.abs(at[:, None] - at[None]).max(-1) <= 1).astype(float)
    whole = np.eye(len(at) + 1)
    whole[1:, 1:] = near / near.sum(0)
    return whole


def standardised(level: float) -> Rule:
    """The best accuracy, if the p of the largest standardised mean gain is at most a level."""

    def rule(value: Gains, _: Gains | None) -> int:
        return value.best if p_max(value.differences[:, 1:], standardised=True) <= level else 0

    return rule


def smallest(cell: Cell) -> Rule:
    """The smallest edit within a standard error of the best, of those that gain more than one."""
    sizes = np.r_[0, np.abs(cell.settings[:, cell.arm == "caa" :]).prod(1)]

    def rule(value: Gains, _: Gains | None) -> int:
        top = value.best
        near = value.above(1) & (value.mean >= value.mean[top] - value.error[top])
        return int(np.where(near, sizes, np.inf).argmin()) if value.above(1)[top] else 0

    return rule


def rules(cell: Cell) -> dict[str, Rule]:
    """All that are compared."""
    levels = [level for level in (0.1, 0.2, LEVEL, 0.3, 0.5) if level != LEVEL]
    return {
        **{f"`{name}`": rule for name, rule in RULES.items()},
        "smallest edit within 1 SE of the best, > 1 SE": smallest(cell),
        "best, standardised p_max <= 0.1": standardised(0.1),
        **{f"best, p_max <= {level}": sure(level) for level in levels},
        **{f"likeliest, p_max <= {level}": likely(sure(level)) for level in (0.1, LEVEL)},
        "backed by > 2 SE": backed(2),
        "best, > 1.5 SE": beyond(1.5),
        **{f"best, > {n:g} SE, or backed": either(beyond(n), backed(1)) for n in (1.5, 2)},
        **{f"best, p_max <= {n}, or backed": either(sure(n), backed(1)) for n in levels},
        "`sure`, or backed by > 2 SE": either(sure(LEVEL), backed(2)),
    }


SMOOTHED = ("`best`", "`best-1se`", "`sure`", "`backed`", "`sure-or-backed`")
"""Rules that are tried on scores smoothed over the grid too."""


def picks(cell: Cell, size: int, draws: int, random: np.random.Generator) -> dict[str, list[int]]:
    """The columns that every rule picks on each held-out set."""
    found: dict[str, list[int]] = {}
    every, smooth = rules(cell), smoothing(cell)
    for _ in range(draws):
        drawn = random.choice(len(cell.accuracy), min(size, len(cell.accuracy)), replace=False)
        accuracy, likelihood = cell.accuracy[drawn], cell.likelihood[drawn]
        ranks = -cell.margin[drawn].mean(0).round(9), -accuracy.mean(0).round(9)
        value = Gains(accuracy, np.lexsort(ranks).tolist())
        smoothed = Gains(accuracy @ smooth), Gains(likelihood @ smooth)
        for name, rule in every.items():
            found.setdefault(name, []).append(rule(value, Gains(likelihood)))
        for name in SMOOTHED:
            found.setdefault(f"{name}, smoothed", []).append(every[name](*smoothed))
    return found


class Gained(NamedTuple):
    """What a rule gains over the unsteered model, in points.

    Attributes:
        cells: ``[cells]``.
        again: the same of bootstrap draws, ``[draws, cells]``.
        steers: share of the held-out sets on which it takes a setting.
    """

    cells: Array
    again: Array
    steers: float


def measure(every: list[Cell], size: int, draws: int) -> dict[str, Gained]:
    """What every rule gains."""
    random = np.random.default_rng(0)
    chosen = [picks(cell, size, draws, random) for cell in every]
    resampled = random.integers(draws, size=(BOOTSTRAPS, draws))
    weights: dict[str, Array] = {}
    for cell in every:
        count = len(cell.tested)
        drawn = random.multinomial(count, np.full(count, 1 / count), BOOTSTRAPS)
        weights.setdefault(cell.task, drawn / count)
    found = {}
    for name in chosen[0]:
        own, again, steers = [], [], []
        for cell, of_cell in zip(every, chosen, strict=True):
            gains = 100 * (cell.tested - cell.tested[:, :1])
            picked = np.array(of_cell[name])
            own.append(gains.mean(0)[picked].mean())
            of_settings = weights[cell.task] @ gains
            again.append(np.take_along_axis(of_settings, picked[resampled], 1).mean(1))
            steers.append((picked > 0).mean())
        found[name] = Gained(np.array(own), np.stack(again, 1), float(np.mean(steers)))
    return found


TODAY = "`best`"


def show(found: dict[str, Gained]) -> None:
    """Print the table, the largest mean gain first."""
    below = f"cells < {WORST:g} | surely"
    print(f"| rule | mean gain | more than {TODAY} | worst cell | {below} | steers |")
    print("|---|---|---|---|---|---|---|")
    for name, (own, again, steers) in sorted(found.items(), key=lambda of: -of[1].cells.mean()):
        more, more_again = own - found[TODAY].cells, again - found[TODAY].again
        figures = [
            f"{of_own:+.2f} ± {of_again.std():.2f}"
            for of_own, of_again in (
                (own.mean(), again.mean(1)),
                (more.mean(), more_again.mean(1)),
                (own.min(), again.min(1)),
            )
        ]
        surely = np.quantile(again, SURELY, axis=0) < WORST
        shares = f"{(own < WORST).sum()} of {len(own)}", f"{surely.sum()}", f"{100 * steers:.0f} %"
        figures += shares
        print("|", " | ".join([name, *figures]), "|")


def by_task(every: list[Cell], found: dict[str, Gained]) -> None:
    """Print what the rules with a name gain on each task: the mean of its arms, and the worst."""
    names = [f"`{name}`" for name in RULES]
    print(f"| task | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    tasks = np.array([cell.task for cell in every])
    for task in dict.fromkeys(tasks):
        own = [found[name].cells[tasks == task] for name in names]
        print(f"| {task} |", " | ".join(f"{o.mean():+.2f} ({o.min():+.2f})" for o in own), "|")


def draw(tables: dict[str, dict[str, Gained]], path: Path) -> None:
    """Draw mean gain against worst cell; the line joins what no rule beats on both."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(5 * len(tables), 4.5), layout="constrained")
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (title, found) in zip(panels, tables.items(), strict=True):
        at = {name: (of.cells.min(), of.cells.mean()) for name, of in found.items()}
        front = [
            name
            for name, (x, y) in sorted(at.items(), key=lambda of: of[1])
            if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in at.values())
        ]
        axes.plot(*zip(*(at[name] for name in front), strict=True), color="tab:blue", lw=1)
        axes.axvline(WORST, color="gray", lw=0.8, ls="--")
        axes.axhline(at[TODAY][1], color="gray", lw=0.8, ls="--")
        middle = sum(axes.get_xlim()) / 2
        for name, (x, y) in at.items():
            named = name.strip("`") in RULES
            axes.plot(x, y, "o", ms=6 if named else 3, color="tab:red" if named else "tab:gray")
            if named:
                side = -1 if x > middle else 1
                axes.annotate(
                    name.strip("`"),
                    (x, y),
                    xytext=(6 * side, 5),
                    textcoords="offset points",
                    ha="right" if side < 0 else "left",
                    fontsize=7,
                )
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("worst cell: accuracy over unsteered, points")
        axes.set_ylabel("mean gain, points")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--found", type=Path, required=True)
    parser.add_argument("--checked", type=Path, nargs="*", default=[])
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--draws", type=int, default=200)
    given = parser.parse_args()
    groups = {
        "the rule was found on": list(cells(given.found)),
        "the rule was checked on": [cell for folder in given.checked for cell in cells(folder)],
    }
    tables = {}
    for title, every in groups.items():
        if not every:
            continue
        title = f"{len({cell.task for cell in every})} tasks that {title} ({len(every)} cells)"
        tables[title] = found = measure(every, given.held_out, given.draws)
        print(f"\n{title}\n")
        show(found)
        print()
        by_task(every, found)
    if given.picture is not None:
        draw(tables, given.picture)


if __name__ == "__main__":
    main()
