"""Heatmaps of a sweep as PNG files, in the colours of the page."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sadi_lmeval.errors import UserError
from sadi_lmeval.records.steering import finite
from sadi_lmeval.reports.drawing import png
from sadi_lmeval.reports.plots import Measure, Tried, color_bar, heatmap, reach_of, titled
from sadi_lmeval.settings import Axes

Line = dict[str, Any]
"""Of a sweep."""


def check_can_draw() -> None:
    """Refuse before any work is done where matplotlib is missing.

    Raises:
        UserError: saying how to install it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "--heatmaps needs matplotlib, which is not installed: pip install 'sadi-lmeval[plot]'"
        )


def check_folder(folder: Path) -> None:
    """Refuse before any work is done what cannot be a folder.

    Raises:
        UserError: it is a file, or lies in one.
    """
    if any(path.exists() and not path.is_dir() for path in (folder, *folder.parents)):
        raise UserError(f"--heatmaps {folder}: is or lies in a file; name a folder")


def draw_heatmaps(
    lines: Sequence[Line],
    axes_of: Mapping[str, Axes],
    best: Mapping[tuple[str, str], Line],
    folder: Path,
) -> list[Path]:
    """Draw one heatmap a task and arm: the mean difference from the unsteered model.

    Those of one measure have one scale of colours.

    Args:
        lines: of a sweep.
        axes_of: of each arm.
        best: of each task and arm the best line, which is outlined.
        folder: where the files go; it is made.

    Returns:
        the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {task: _kind([line for line in lines if line["task"] == task])
             for task in dict.fromkeys(line["task"] for line in lines)}  # fmt: skip
    steered = [line for line in lines if line["method"] != "none"]
    measures = {
        (factor, unit): Measure(
            factor,
            unit,
            reach_of([_tried(o, axes_of) for o in steered if kinds[o["task"]] == (factor, unit)]),
        )
        for factor, unit in kinds.values()
    }
    written = []
    for task, method in dict.fromkeys((line["task"], line["method"]) for line in steered):
        mine = [line for line in steered if (line["task"], line["method"]) == (task, method)]
        measure = measures[kinds[task]]
        top = best.get((task, method))
        title = f"{method} on {task}"
        drawing = heatmap(
            title,
            axes_of[method].names,
            [_tried(line, axes_of) for line in mine],
            None if top is None else _tried(top, axes_of).numbers,
            measure,
        )
        unsteered = next(o for o in lines if o["task"] == task and o["method"] == "none")
        score = "not finite" if unsteered["score"] is None else f"{unsteered['score']:.3f}"
        held_out = mine[0]["split"] == "dev"
        documents = f"{mine[0]['documents']} {'held-out' if held_out else 'scored'} documents"
        outlined = "best" if held_out else "oracle: best on the scored documents"
        said = [
            title,
            f"Difference from unsteered ({score}), {documents}",
            *([] if top is None else [f"Outlined: {outlined}"]),
        ]
        path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', task)}.{method}.png"
        png(titled(drawing, said, color_bar(measure)), path)
        written.append(path)
    return written


def _kind(lines: Sequence[Line]) -> tuple[int, str]:
    """Say how a task's differences are shown: the factor, and the unit."""
    objective = str(lines[0]["objective"])
    scores = [score for line in lines if (score := finite(line["score"])) is not None]
    if objective in ("metric", "exact_match") and all(0 <= score <= 1 for score in scores):
        return 100, "points"
    return 1, "metric" if objective == "metric" else f"log-{objective}"


def _tried(line: Line, axes_of: Mapping[str, Axes]) -> Tried:
    numbers = tuple(float(line[name]) for name in axes_of[line["method"]].names)
    return Tried(numbers, finite(line["difference"]), finite(line.get("difference_stderr")))
