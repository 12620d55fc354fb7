"""One heatmap a task and method, each cell in its place."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.registry import arm_names
from sadi_lmeval.reports.heatmap import check_can_draw, check_folder, draw_heatmaps
from sadi_lmeval.settings import Axes as Numbers
from sadi_lmeval.settings import Axis, Setting

pytestmark = pytest.mark.quick

AXES = {n: arm.method(**arm.sets).axes for n, arm in arm_names().items() if arm.method}


def line(
    method: str, where: int, strength: float, difference: float | None = 0.0, task: str = "one"
) -> dict[str, Any]:
    numbers = AXES[method].named(Setting(where, strength)) if method in AXES else {}
    return {
        "task": task,
        "method": method,
        **numbers,
        "difference": difference,
        "score": None if difference is None else 0.5 + difference,
        "objective": "metric",
        "documents": 9,
        "split": "dev",
    }


NONE = line("none", 0, 0.0)
METHODS = ("sadi-head", "sadi-neuron", "iti", "caa")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[list[float]]]:
    """What is drawn, a matrix a heatmap."""
    found: list[list[list[float]]] = []
    draw = Axes.imshow

    def spying(self: Axes, values: Any, *arguments: Any, **named: Any) -> Any:
        found.append(values)
        return draw(self, values, *arguments, **named)

    monkeypatch.setattr(Axes, "imshow", spying)
    return found


def test_every_task_and_method_has_an_image(tmp_path: Path) -> None:
    lines = [{**NONE, "task": task} for task in ("one", "a/b c")]
    lines += [line(m, 1, 2.0, 0.1, task) for task in ("one", "a/b c") for m in METHODS]
    written = draw_heatmaps(lines, AXES, tmp_path / "new" / "folder")
    names = [f"{task}.{method}.png" for task in ("one", "a_b_c") for method in METHODS]
    assert [path.name for path in written] == names
    for path in written:
        height, width, _ = imread(path).shape
        assert height > 100
        assert width > 100


def test_a_cell_is_where_its_k_and_delta_are(
    tmp_path: Path, drawn: list[list[list[float]]]
) -> None:
    lines = [
        NONE,
        line("sadi-head", 10, -1.0, 0.1),
        line("sadi-head", 2, 30.0, 0.2),
        line("sadi-head", 2, -1.0, -0.3),
        line("sadi-neuron", 5, 4.0, 0.4),
    ]
    draw_heatmaps(lines, AXES, tmp_path)
    [[small, large], [[other]]] = drawn
    assert small == [-0.3, 0.2]
    assert large[0] == 0.1
    assert math.isnan(large[1])  # not tried
    assert other == 0.4


def test_the_axes_have_the_names_of_the_method(
    tmp_path: Path, drawn: list[list[list[float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[str] = []
    for name in ("set_xlabel", "set_ylabel"):
        monkeypatch.setattr(Axes, name, lambda self, text, **more: labels.append(text))
    lines = [NONE, *(line("caa", layer, 1.5, 0.1 * layer) for layer in (2, 0, 1))]
    draw_heatmaps(
        [*lines, line("iti", 3, 15.0, 0.5), line("sadi-head", 3, 9.0, 0.6)], AXES, tmp_path
    )
    labels = [label for label in labels if label]  # the colour bar has none
    assert labels == ["multiplier", "layer", "alpha", "K", "delta", "K"]
    assert drawn == [[[0.0], [0.1], [0.2]], [[0.5]], [[0.6]]]


def test_of_more_than_two_numbers_the_last_is_across_and_of_one_there_is_one_row(
    tmp_path: Path, drawn: list[list[list[float]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: dict[str, list[Any]] = {"set_xlabel": [], "set_ylabel": [], "set_yticks": []}
    for name, said in texts.items():
        monkeypatch.setattr(Axes, name, lambda self, *given, said=said, **_: said.append(given[-1]))
    three = Numbers(Axis("layer", whole=True), Axis("top_k", whole=True), Axis("push"))
    axes = {"three": three, "one": Numbers(Axis("push"))}
    cells = [(2, 1, 0.5, 0.1), (0, 3, 0.5, 0.2), (2, 1, 1.5, 0.3), (0, 3, 1.5, -0.4)]
    lines = [NONE]
    for *numbers, difference in cells:
        named = three.named(Setting(*numbers))
        lines.append({**line("three", 0, 0.0, difference), **named})
    lines += [{**line("one", 0, 0.0, push), "push": push} for push in (0.5, -0.5)]
    assert len(draw_heatmaps(lines, axes, tmp_path)) == 2
    assert drawn == [[[0.2, -0.4], [0.1, 0.3]], [[-0.5, 0.5]]]
    assert [label for label in texts["set_xlabel"] if label] == ["push", "push"]
    assert [label for label in texts["set_ylabel"] if label] == ["layer, K"]
    assert ["0, 3", "2, 1"] in texts["set_yticks"]


def test_a_setting_that_is_not_finite_is_an_empty_cell(
    tmp_path: Path, drawn: list[list[list[float]]]
) -> None:
    [path] = draw_heatmaps(
        [NONE, line("sadi-head", 1, 1.0, None), line("sadi-head", 1, 2.0, 0.1)], AXES, tmp_path
    )
    [[[bad, good]]] = drawn
    assert math.isnan(bad)
    assert good == 0.1
    assert imread(path).size


@pytest.mark.parametrize("difference", [0.0, None])
def test_a_heatmap_without_any_difference_is_drawn(
    tmp_path: Path, difference: float | None
) -> None:
    assert draw_heatmaps([NONE, line("sadi-head", 1, 1.0, difference)], AXES, tmp_path)


def test_a_heatmap_is_drawn_where_the_unsteered_model_is_not_finite(tmp_path: Path) -> None:
    unsteered = {**NONE, "score": None, "difference": None}
    assert draw_heatmaps([unsteered, line("sadi-head", 1, 1.0, None)], AXES, tmp_path)


def test_the_unsteered_model_alone_has_no_heatmap(tmp_path: Path) -> None:
    assert draw_heatmaps([NONE], AXES, tmp_path) == []


def test_without_matplotlib_the_user_is_told_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_can_draw()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"matplotlib.*pip install 'sadi-lmeval\[plot\]'"):
        check_can_draw()


def test_a_file_is_no_folder_for_heatmaps(tmp_path: Path) -> None:
    check_folder(tmp_path)
    check_folder(tmp_path / "new" / "folder")
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "in" / "it"):
        with pytest.raises(UserError, match="name a folder"):
            check_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
