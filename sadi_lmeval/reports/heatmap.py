"""Heatmaps of a sweep as PNG files: the last number of a setting across, the others down."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sadi_lmeval.errors import UserError
from sadi_lmeval.settings import Axes


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
    lines: Sequence[dict[str, Any]], axes_of: Mapping[str, Axes], folder: Path
) -> list[Path]:
    """Draw one heatmap a task and arm: the mean difference from the unsteered model.

    Args:
        lines: of a sweep.
        axes_of: of each arm.
        folder: where the files go; it is made.

    Returns:
        the files.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for task, method in dict.fromkeys(
        (line["task"], line["method"]) for line in lines if line["method"] != "none"
    ):
        mine = [line for line in lines if (line["task"], line["method"]) == (task, method)]
        *down, across = axes_of[method]
        unsteered = next(
            line for line in lines if line["task"] == task and line["method"] == "none"
        )
        where = sorted({tuple(line[axis.name] for axis in down) for line in mine})
        strength = sorted({line[across.name] for line in mine})
        values = [[float("nan")] * len(strength) for _ in where]
        for line in mine:
            if line["difference"] is not None:
                row = where.index(tuple(line[axis.name] for axis in down))
                values[row][strength.index(line[across.name])] = line["difference"]
        reach = max((abs(v) for row in values for v in row if v == v), default=0.0) or 1.0
        figure = Figure(figsize=(2.5 + 0.5 * len(strength), 1.8 + 0.4 * len(where)), dpi=120)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        image = axes.imshow(values, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
        axes.set_xticks(range(len(strength)), [f"{d:g}" for d in strength], rotation=90)
        axes.set_yticks(range(len(where)), [", ".join(f"{n:g}" for n in each) for each in where])
        axes.set_xlabel(across.short)
        axes.set_ylabel(", ".join(axis.short for axis in down))
        for (row, column), value in (
            ((r, c), values[r][c]) for r in range(len(where)) for c in range(len(strength))
        ):
            if value == value:
                color = "white" if abs(value) > 0.6 * reach else "black"
                axes.text(column, row, f"{value:+.2f}", ha="center", va="center",
                          fontsize=6, color=color)  # fmt: skip
            else:
                axes.text(column, row, "×", ha="center", va="center", fontsize=7)
        of = mine[0]
        score = "not finite" if unsteered["score"] is None else f"{unsteered['score']:.3f}"
        figure.suptitle(
            f"{task}, {method}: {of['objective']} less unsteered "
            f"({score}), {of['documents']} {of['split']} documents",
            fontsize=9,
        )
        figure.colorbar(image, ax=axes)
        figure.tight_layout()
        path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', task)}.{method}.png"
        figure.savefig(path)
        written.append(path)
    return written
