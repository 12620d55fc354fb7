"""K × delta heatmaps of a sweep, as PNG files."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sadi_lmeval.errors import UserError


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


def draw_heatmaps(lines: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw one heatmap a task and element: the mean difference from the unsteered model.

    Args:
        lines: of a sweep.
        folder: where the files go; it is made.

    Returns:
        the files.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for task, element in dict.fromkeys(
        (line["task"], line["element"]) for line in lines if line["element"] != "none"
    ):
        mine = [line for line in lines if (line["task"], line["element"]) == (task, element)]
        unsteered = next(
            line for line in lines if line["task"] == task and line["element"] == "none"
        )
        top_k = sorted({line["top_k"] for line in mine})
        delta = sorted({line["delta"] for line in mine})
        values = [[float("nan")] * len(delta) for _ in top_k]
        for line in mine:
            if line["difference"] is not None:
                at = top_k.index(line["top_k"]), delta.index(line["delta"])
                values[at[0]][at[1]] = line["difference"]
        reach = max((abs(v) for row in values for v in row if v == v), default=0.0) or 1.0
        figure = Figure(figsize=(2.5 + 0.5 * len(delta), 1.8 + 0.4 * len(top_k)), dpi=120)
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        image = axes.imshow(values, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
        axes.set_xticks(range(len(delta)), [f"{d:g}" for d in delta], rotation=90)
        axes.set_yticks(range(len(top_k)), [str(k) for k in top_k])
        axes.set_xlabel("delta")
        axes.set_ylabel("K")
        for (row, column), value in (
            ((r, c), values[r][c]) for r in range(len(top_k)) for c in range(len(delta))
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
            f"{task}, {element}: {of['objective']} less unsteered "
            f"({score}), {of['documents']} {of['split']} documents",
            fontsize=9,
        )
        figure.colorbar(image, ax=axes)
        figure.tight_layout()
        path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', task)}.{element}.png"
        figure.savefig(path)
        written.append(path)
    return written
