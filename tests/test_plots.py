"""Every plot shows its numbers where they belong, in the page and as a picture."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest
from matplotlib.image import imread

from sadi_lmeval.reports.drawing import (
    Area,
    Boxes,
    Dot,
    Drawing,
    Line,
    Outline,
    Words,
    figure_of,
    fitting,
    png,
    shade,
    style,
    svg,
)
from sadi_lmeval.reports.plots import (
    WIDTH,
    Entries,
    Gain,
    Measure,
    Tried,
    color_bar,
    curves,
    entry_map,
    gain_range,
    gains,
    heatmap,
    ticks,
)

pytestmark = pytest.mark.quick

POINTS = Measure(100, "points", 0.4)
NAMES = ["top_k", "delta"]
TRIED = [
    Tried((2.0, 4.0), 0.1, 0.05),
    Tried((2.0, 9.0), -0.4, 0.05),
    Tried((6.0, 4.0), 0.2, 0.0),
    Tried((6.0, 9.0), None, None),
    Tried((8.0, 4.0), 0.0, 0.1),
    Tried((8.0, 9.0), 0.3, None),
]


def texts(drawing: Drawing) -> list[str]:
    return [mark.text for mark in drawing.marks if isinstance(mark, Words)]


def of_kind(drawing: Drawing, kind: type) -> list:  # type: ignore[type-arg]
    return [mark for mark in drawing.marks if isinstance(mark, kind)]


def every_plot() -> list[Drawing]:
    rows = [Gain("caa", 3.0, -2.0, 8.0, 5.0), Gain("a-very-long-name-of-a-control", 1, 0, 2, None)]
    found = [[0.5 + layer / 99 + n / 9 for n in range(4)] for layer in range(12)]
    return [
        gains("boolq", rows, gain_range(rows), "points"),
        heatmap("sadi on boolq", NAMES, TRIED, (6.0, 4.0), POINTS),
        curves("sadi on boolq", NAMES, TRIED, (6.0, 4.0), POINTS),
        entry_map("sadi", Entries(12, 4, "head", "probe accuracy", 1, found, {(11, 3): 1})),
        entry_map("sadi", Entries(2, 600, "hidden unit", "", 10, [], {(1, 59): 3})),
        color_bar(POINTS),
        color_bar(Measure(1, "log-likelihood", 0.5454)),
    ]


def test_a_heatmap_has_every_setting_in_its_place_the_shorter_way_across() -> None:
    drawing = heatmap("sadi on boolq", NAMES, TRIED, (6.0, 4.0), POINTS)
    boxes = {mark.title: mark for mark in of_kind(drawing, Boxes)}
    assert set(boxes) == {
        "K 2, delta 4: +10.0 ± 5.0", "K 2, delta 9: −40.0 ± 5.0", "K 6, delta 4: +20.0 ± 0.0",
        "K 6, delta 9: not finite", "K 8, delta 4: 0.0 ± 10.0", "K 8, delta 9: +30.0",
    }  # fmt: skip
    places = {title[:12]: mark.boxes[0][:2] for title, mark in boxes.items()}
    assert places["K 2, delta 4"][0] < places["K 2, delta 9"][0]  # delta goes across
    assert places["K 2, delta 4"][1] < places["K 6, delta 4"][1] < places["K 8, delta 4"][1]
    assert boxes["K 2, delta 9: −40.0 ± 5.0"].color == "w5"
    assert boxes["K 8, delta 4: 0.0 ± 10.0"].color == "panel"
    [outline] = of_kind(drawing, Outline)
    assert outline.box == boxes["K 6, delta 4: +20.0 ± 0.0"].boxes[0]
    assert "×" in texts(drawing)
    assert drawing.said == (
        "sadi on boolq: 6 settings tried; the best is K 8, delta 9 with +30.0 points; "
        "outlined is K 6, delta 4 with +20.0 points"
    )


def test_a_setting_of_one_number_or_of_three_has_a_heatmap() -> None:
    one = heatmap("a", ["push"], [Tried((n,), 0.1, None) for n in (1.0, -2.0)], None, POINTS)
    assert texts(one)[:2] == ["−2", "1"]
    three = [
        Tried((a, b, c), 0.1, None) for a in (0.0, 2.0) for b in (1.0, 3.0) for c in (4.0, 5.0)
    ]
    drawing = heatmap("a", ["layer", "top_k", "push"], three, None, POINTS)
    assert texts(drawing)[:4] == ["0, 1", "0, 3", "2, 1", "2, 3"]
    assert texts(drawing)[6:8] == ["push", "layer, K"]


def test_curves_go_through_the_chosen_setting_with_bands_of_95_percent() -> None:
    drawing = curves("sadi on boolq", NAMES, TRIED, (8.0, 4.0), POINTS)
    told = [mark.title for mark in of_kind(drawing, Dot)]
    assert told == ["K 2: +10.0", "K 6: +20.0", "K 8: 0.0", "delta 4: 0.0", "delta 9: +30.0"]
    assert [mark.title for mark in of_kind(drawing, Dot) if mark.hollow] == [
        "K 8: 0.0",
        "delta 4: 0.0",
    ]
    [band] = of_kind(drawing, Area)  # along delta a single point has an error
    below, above = of_kind(drawing, Dot)[0].at[1], band.points[0][1]
    tall = abs(of_kind(drawing, Dot)[1].at[1] - below)  # of 10 points
    assert below - above == pytest.approx(1.96 * 5 / 10 * tall)
    assert band.points[1][1] == pytest.approx(of_kind(drawing, Dot)[1].at[1])


def test_a_curve_is_broken_where_a_setting_is_not_finite() -> None:
    row = [Tried((n, 1.0), None if n == 3 else 0.1, 0.01) for n in (1.0, 2.0, 3.0, 4.0, 5.0)]
    drawing = curves("a", NAMES, row, (1.0, 1.0), POINTS)
    lines = [mark for mark in of_kind(drawing, Line) if mark.color == "accent"]
    assert [len(mark.points) for mark in lines] == [2, 2]


def test_gains_of_all_tasks_share_an_axis_that_has_zero_and_its_unit() -> None:
    rows = [Gain("caa", 3.0, -2.0, 8.0, 12.0), Gain("iti", -20.0, None, None, None)]
    span = gain_range(rows)
    assert span[0] < -20
    assert span[1] > 12
    drawing = gains("boolq", rows, span, "points")
    assert {"0", "−20", "+10", "points over unsteered", "caa", "iti"} <= set(texts(drawing))
    zero = next(mark for mark in of_kind(drawing, Words) if mark.text == "0").at[0]
    ten = next(mark for mark in of_kind(drawing, Words) if mark.text == "+10").at[0]
    dots = {mark.title: mark for mark in of_kind(drawing, Dot)}
    assert dots["caa, scored: +3.0"].at[0] == pytest.approx(zero + 0.3 * (ten - zero))
    assert dots["caa, held out: +12.0"].hollow
    assert dots["iti, scored: −20.0"].at[0] < zero
    assert "iti −20.0" in drawing.said


def test_the_map_of_entries_shades_what_was_found_and_outlines_what_is_steered() -> None:
    rows = [[0.5, 0.5, 1.0], [0.5, 0.75, 0.5]]
    drawing = entry_map("iti", Entries(2, 3, "head", "probe accuracy", 1, rows, {(0, 2): 1}))
    colours = {mark.color: mark.boxes for mark in reversed(of_kind(drawing, Boxes))}
    [outline] = of_kind(drawing, Outline)
    assert outline.title == "layer 0, head 2: 1"
    assert outline.box in colours["b5"]
    assert {"0.5", "1", "probe accuracy"} <= set(texts(drawing))
    signed = entry_map("sadi", Entries(1, 2, "head", "mean difference", 1, [[-2.0, 1.0]], {}))
    assert {"−2", "0", "2"} <= set(texts(signed))
    assert "none selected" in signed.said


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (-12, 21, [-10, 0, 10, 20]),
        (-0.07, 0.13, [-0.05, 0, 0.05, 0.1]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, found: list[float]) -> None:
    assert ticks(low, high) == found


@pytest.mark.parametrize("drawing", every_plot(), ids=lambda drawing: drawing.title)
def test_no_letters_are_small_or_cut_off(drawing: Drawing) -> None:
    """At least 8 points, and wholly on the surface."""
    figure = figure_of(drawing)
    whole = figure.bbox
    [axes] = figure.axes
    assert axes.texts
    for text in axes.texts:
        assert float(text.get_fontsize()) >= 8
        box = text.get_window_extent()
        assert box.x0 >= whole.x0 - 1, text
        assert box.x1 <= whole.x1 + 1, text
        assert box.y0 >= whole.y0 - 1, text
        assert box.y1 <= whole.y1 + 1, text
    assert drawing.width <= WIDTH


@pytest.mark.parametrize("drawing", every_plot(), ids=lambda drawing: drawing.title)
def test_the_page_has_every_word_of_a_plot(drawing: Drawing) -> None:
    text = svg(drawing)
    shown = [unescape(found) for found in re.findall(r"<text [^>]*>([^<]*)", text)]
    assert shown == texts(drawing)
    assert text.startswith('<svg class="plot" role="img" aria-label="')


def test_words_that_came_with_data_are_escaped() -> None:
    evil = '"><script>alert(1)</script>$x_1$'
    drawing = Drawing(evil, evil, 90, 20, [Words(evil, (1, 9), title=evil), Boxes("b1", [], evil)])
    assert "<script" not in svg(drawing)
    assert texts(drawing) == [evil]
    assert figure_of(drawing).axes[0].texts[0].get_text() == evil.replace("$", r"\$")


def test_a_picture_has_the_colours_of_the_page(tmp_path: Path) -> None:
    drawing = Drawing("a", "a", 40, 20, [Boxes(shade(5), [(0, 0, 40, 20)])])
    png(drawing, tmp_path / "new" / "a.png")
    picture = imread(tmp_path / "new" / "a.png")
    assert picture.shape[:2] == (40, 80)  # two dots a pixel
    colour = "".join(f"{round(255 * part):02x}" for part in picture[20, 40, :3])
    assert f"--b5: #{colour};" in style()


def test_words_are_shortened_to_their_room() -> None:
    assert fitting("short", 100) == "short"
    assert fitting("a-long-name-of-a-method", 60, 10) == "a-long-na…"
