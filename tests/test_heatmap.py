"""One heatmap a task and method, each cell in its place."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from sadi_lmeval.errors import UserError
from sadi_lmeval.methods.registry import arm_names
from sadi_lmeval.reports import heatmap
from sadi_lmeval.reports.drawing import Boxes, Drawing, Outline, Words, png
from sadi_lmeval.reports.heatmap import check_can_draw, check_folder, draw_heatmaps
from sadi_lmeval.settings import Setting

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
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Drawing]:
    """What is drawn."""
    found: list[Drawing] = []

    def spying(drawing: Drawing, path: Path) -> None:
        found.append(drawing)
        png(drawing, path)

    monkeypatch.setattr(heatmap, "png", spying)
    return found


def cells(drawing: Drawing) -> dict[str, str]:
    """What each cell says, with its colour."""
    boxes = [mark for mark in drawing.marks if isinstance(mark, Boxes) and mark.title]
    return {mark.title: mark.color for mark in boxes}


def words(drawing: Drawing) -> list[str]:
    return [mark.text for mark in drawing.marks if isinstance(mark, Words)]


def test_every_task_and_method_has_an_image(tmp_path: Path) -> None:
    lines = [{**NONE, "task": task} for task in ("one", "a/b c")]
    lines += [line(m, 1, 2.0, 0.1, task) for task in ("one", "a/b c") for m in METHODS]
    written = draw_heatmaps(lines, AXES, {}, tmp_path / "new" / "folder")
    names = [f"{task}.{method}.png" for task in ("one", "a_b_c") for method in METHODS]
    assert [path.name for path in written] == names
    for path in written:
        height, width, _ = imread(path).shape
        assert height > 100
        assert width > 100


def test_a_cell_is_where_its_k_and_delta_are(tmp_path: Path, drawn: list[Drawing]) -> None:
    lines = [
        NONE,
        line("sadi-head", 10, -1.0, 0.1),
        line("sadi-head", 2, 30.0, 0.2),
        line("sadi-head", 2, -1.0, -0.3),
        line("sadi-neuron", 5, 4.0, 0.4),
    ]
    draw_heatmaps(lines, AXES, {}, tmp_path)
    heads, neurons = drawn
    told = {"K 10, delta −1: +10.0", "K 2, delta 30: +20.0", "K 2, delta −1: −30.0"}
    assert set(cells(heads)) == told  # one was not tried
    assert set(cells(neurons)) == {"K 5, delta 4: +40.0"}


def test_pictures_of_a_measure_have_one_labelled_scale_and_the_best_is_outlined(
    tmp_path: Path, drawn: list[Drawing]
) -> None:
    lines = [NONE, line("sadi-head", 1, 1.0, 0.1), line("sadi-head", 2, 1.0, 0.05)]
    lines += [line("caa", 1, 1.0, 0.4)]
    draw_heatmaps(lines, AXES, {("one", "sadi-head"): lines[1]}, tmp_path)
    heads, caa = drawn
    assert cells(heads)["K 1, delta 1: +10.0"] == "b2"  # a half of the darkest, by its root
    assert cells(caa)["layer 1, multiplier 1: +40.0"] == "b5"
    for drawing in drawn:
        assert {"difference from unsteered, points", "−40.0", "+40.0"} <= set(words(drawing))
        assert "Difference from unsteered (0.500), 9 held-out documents" in words(drawing)
    assert words(heads)[0] == "sadi-head on one"
    assert "Outlined: best" in words(heads)
    [outline] = [mark for mark in heads.marks if isinstance(mark, Outline)]
    assert outline.title == "chosen: K 1, delta 1"
    assert "Outlined: best" not in words(caa)


def test_what_is_best_on_scored_documents_is_an_oracle(
    tmp_path: Path, drawn: list[Drawing]
) -> None:
    lines = [{**each, "split": "test"} for each in (NONE, line("caa", 1, 1.0, 0.4))]
    draw_heatmaps(lines, AXES, {("one", "caa"): lines[1]}, tmp_path)
    assert "Outlined: oracle: best on the scored documents" in words(drawn[0])


def test_log_likelihoods_have_a_scale_of_their_own(tmp_path: Path, drawn: list[Drawing]) -> None:
    texts = {"task": "text", "objective": "likelihood"}
    lines = [{**NONE, **texts, "score": -2.0}, {**line("caa", 1, 1.0, 0.5), **texts, "score": -1.5}]
    draw_heatmaps([NONE, line("caa", 1, 1.0, 0.1), *lines], AXES, {}, tmp_path)
    points, likelihood = drawn
    assert "+10.0" in words(points)
    assert {"+0.500", "difference from unsteered, log-likelihood"} <= set(words(likelihood))


def test_the_axes_have_the_names_of_the_method(tmp_path: Path, drawn: list[Drawing]) -> None:
    lines = [NONE, *(line("caa", layer, 1.5, 0.1 * layer) for layer in (2, 0, 1))]
    every = [*lines, line("iti", 3, 15.0, 0.5), line("sadi-head", 3, 9.0, 0.6)]
    draw_heatmaps(every, AXES, {}, tmp_path)
    for drawing, names in zip(drawn, (("layer", "multiplier"), ("K", "alpha"), ("K", "delta")),
                              strict=True):  # fmt: skip
        assert set(names) <= set(words(drawing))


def test_a_setting_that_is_not_finite_is_an_empty_cell(
    tmp_path: Path, drawn: list[Drawing]
) -> None:
    [path] = draw_heatmaps(
        [NONE, line("sadi-head", 1, 1.0, None), line("sadi-head", 1, 2.0, 0.1)], AXES, {}, tmp_path
    )
    assert cells(drawn[0])["K 1, delta 1: not finite"] == "panel"
    assert "K 1, delta 2: +10.0" in cells(drawn[0])
    assert imread(path).size


@pytest.mark.parametrize("difference", [0.0, None])
def test_a_heatmap_without_any_difference_is_drawn(
    tmp_path: Path, difference: float | None
) -> None:
    assert draw_heatmaps([NONE, line("sadi-head", 1, 1.0, difference)], AXES, {}, tmp_path)


def test_a_heatmap_is_drawn_where_the_unsteered_model_is_not_finite(tmp_path: Path) -> None:
    unsteered = {**NONE, "score": None, "difference": None}
    assert draw_heatmaps([unsteered, line("sadi-head", 1, 1.0, None)], AXES, {}, tmp_path)


def test_the_unsteered_model_alone_has_no_heatmap(tmp_path: Path) -> None:
    assert draw_heatmaps([NONE], AXES, {}, tmp_path) == []


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
