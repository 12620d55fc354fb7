"""A drawing of a few kinds of marks, as inline SVG for the page and as a PNG file.

Colours are named by what they are for. The page gives each name a colour in its light and its dark
scheme; a PNG has the light one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, width and height."""

LIGHT = {
    "page": "#fdfdfb", "ink": "#1c2126", "soft": "#59626b", "rule": "#e3e5e6", "edge": "#9aa2a9",
    "panel": "#f1f1ed", "accent": "#0b4f94", "worse": "#8f3603", "alert": "#fff4e0",
    "alert-edge": "#c9770f",
    "b1": "#e3eef8", "b2": "#bcd7ec", "b3": "#85badf", "b4": "#2f76b3", "b5": "#0b4f94",
    "w1": "#feeedd", "w2": "#fdd5aa", "w3": "#fbb06b", "w4": "#bd540a", "w5": "#8f3603",
    "on-dark": "#ffffff",
}  # fmt: skip
DARK = {
    "page": "#14171a", "ink": "#e6e8ea", "soft": "#a3acb4", "rule": "#2a2f34", "edge": "#59626b",
    "panel": "#1f2327", "accent": "#8cc4f5", "worse": "#f7ac66", "alert": "#2f2410",
    "alert-edge": "#d99a3d",
    "b1": "#17293a", "b2": "#1b3f60", "b3": "#23598c", "b4": "#5a9bd4", "b5": "#a9d1f5",
    "w1": "#33261a", "w2": "#573614", "w3": "#7d470f", "w4": "#df8a3a", "w5": "#ffc98f",
    "on-dark": "#0c1116",
}  # fmt: skip
SHADES = 5
"""Shades of a colour, on either side of none."""
TEXT = 11.0
"""Pixels: the smallest letters there are, 8.25 pt."""
_LETTER = 0.6
"""Width of a letter as a part of its height, for the room that words need."""


def shade(level: int) -> str:
    """Name the colour of a level from -5 (worse) through 0 to 5 (better)."""
    return "panel" if level == 0 else f"{'b' if level > 0 else 'w'}{abs(level)}"


def width_of(text: str, size: float = TEXT) -> float:
    """Estimate the width of words, in pixels."""
    return _LETTER * size * len(text)


def fitting(text: str, width: float, size: float = TEXT) -> str:
    """Shorten words to a width in pixels."""
    most = max(2, int(width / (_LETTER * size)))
    return text if len(text) <= most else f"{text[: most - 1]}…"


@dataclass(frozen=True)
class Boxes:
    """Rectangles of one colour."""

    color: str
    boxes: Sequence[Box]
    title: str = ""


@dataclass(frozen=True)
class Outline:
    """The edge of a rectangle; it stands out from any colour."""

    box: Box
    title: str = ""


@dataclass(frozen=True)
class Line:
    """A line through points."""

    color: str
    points: Sequence[Point]
    width: float = 1.0
    dashed: bool = False


@dataclass(frozen=True)
class Area:
    """A pale area between points."""

    color: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Dot:
    """A disc, or a ring."""

    color: str
    at: Point
    radius: float = 3.5
    hollow: bool = False
    title: str = ""


@dataclass(frozen=True)
class Words:
    """A line of text, its middle at the height of ``at``; ``up``: read from below."""

    text: str
    at: Point
    color: str = "soft"
    anchor: Anchor = "start"
    size: float = TEXT
    bold: bool = False
    up: bool = False
    title: str = ""


Mark = Boxes | Outline | Line | Area | Dot | Words


@dataclass
class Drawing:
    """Marks on a surface, in pixels from its upper left.

    Attributes:
        title: a few words.
        said: what it shows, in words, for those who do not see it.
    """

    title: str
    said: str
    width: float
    height: float
    marks: list[Mark] = field(default_factory=list)

    def add(self, *marks: Mark) -> None:
        self.marks += marks

    def place(self, other: Drawing, x: float, y: float) -> None:
        """Put another drawing onto this one."""
        self.marks += [_moved(mark, x, y) for mark in other.marks]


def _moved(mark: Mark, x: float, y: float) -> Mark:
    match mark:
        case Boxes(color, boxes, title):
            return Boxes(color, [(left + x, top + y, w, h) for left, top, w, h in boxes], title)
        case Outline((left, top, w, h), title):
            return Outline((left + x, top + y, w, h), title)
        case Line(color, points, width, dashed):
            return Line(color, [(a + x, b + y) for a, b in points], width, dashed)
        case Area(color, points):
            return Area(color, [(a + x, b + y) for a, b in points])
        case Dot(color, (a, b), radius, hollow, title):
            return Dot(color, (a + x, b + y), radius, hollow, title)
        case Words(text, (a, b), color, anchor, size, bold, up, title):
            return Words(text, (a + x, b + y), color, anchor, size, bold, up, title)


def style() -> Markup:
    """Give the page's colours, and those of all marks, as CSS."""

    def named(colors: dict[str, str]) -> str:
        return " ".join(f"--{name}: {value};" for name, value in colors.items())

    classes = "\n".join(
        f".f-{name} {{ fill: var(--{name}); }} .s-{name} {{ stroke: var(--{name}); }}"
        for name in LIGHT
    )
    return Markup(
        f":root {{ {named(LIGHT)} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {named(DARK)} }} }}\n"
        f"{classes}"
    )


def svg(drawing: Drawing) -> Markup:
    """Render a drawing for the page."""
    size = f"{_n(drawing.width)} {_n(drawing.height)}"
    width, height = size.split()
    content = "".join(map(_svg_of, drawing.marks))
    return Markup(
        f'<svg class="plot" role="img" aria-label="{escape(drawing.said)}" '
        f'width="{width}" height="{height}" viewBox="0 0 {size}">'
        f"<title>{escape(drawing.title)}</title>{content}</svg>"
    )


def _n(number: float) -> str:
    return f"{round(number, 1):g}"


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)


def _svg_of(mark: Mark) -> str:
    title = getattr(mark, "title", "")
    inner = f"<title>{escape(title)}</title>" if title else ""

    def element(name: str, attributes: str, content: str = inner) -> str:
        return f"<{name} {attributes}>{content}</{name}>" if content else f"<{name} {attributes}/>"

    match mark:
        case Boxes(color, boxes):
            path = "".join(f"M{_n(x)} {_n(y)}h{_n(w)}v{_n(h)}h{_n(-w)}z" for x, y, w, h in boxes)
            return element("path", f'class="f-{color}" d="{path}"')
        case Outline((x, y, w, h)):
            where = f'width="{_n(w)}" height="{_n(h)}" x="{_n(x)}" y="{_n(y)}" fill="none"'
            return (
                element("rect", f'{where} class="s-page" stroke-width="4"', "")
                + element("rect", f'{where} class="s-ink" stroke-width="2"')
            )  # fmt: skip
        case Line(color, points, width, dashed):
            dash = ' stroke-dasharray="2 3"' if dashed else ""
            given = f'fill="none" class="s-{color}" stroke-width="{_n(width)}"{dash}'
            return element("path", f'{given} stroke-linejoin="round" d="{_path(points)}"')
        case Area(color, points):
            return element("path", f'class="f-{color} pale" d="{_path(points)}Z"')
        case Dot(color, (x, y), radius, hollow):
            colors = f"f-page s-{color}" if hollow else f"f-{color} s-{color}"
            where = f'cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"'
            return element("circle", f'class="{colors}" stroke-width="1.6" {where}')
        case Words(text, (x, y), color, anchor, size, bold, up):
            turn = f' transform="rotate(-90 {_n(x)} {_n(y)})"' if up else ""
            weight = ' font-weight="650"' if bold else ""
            given = f'class="f-{color}" text-anchor="{anchor}" font-size="{_n(size)}"{weight}{turn}'
            return element("text", f'{given} x="{_n(x)}" y="{_n(y)}"', f"{escape(text)}{inner}")


def png(drawing: Drawing, path: Path) -> None:
    """Write a drawing as a PNG file, two dots a pixel, with matplotlib."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure_of(drawing).savefig(path)


def figure_of(drawing: Drawing) -> Figure:
    """Make matplotlib's figure of a drawing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle, Polygon, Rectangle

    inch = 96.0
    points = 72.0 / inch  # a pixel, in matplotlib's measure of lines and letters
    size = (drawing.width / inch, drawing.height / inch)
    figure = Figure(figsize=size, dpi=2 * inch, facecolor=LIGHT["page"])
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
    axes.set_axis_off()
    for mark in drawing.marks:
        match mark:
            case Boxes(color, boxes):
                for x, y, w, h in boxes:
                    axes.add_patch(Rectangle((x, y), w, h, facecolor=LIGHT[color], linewidth=0))
            case Outline((x, y, w, h)):
                for color, width in (("page", 4), ("ink", 2)):
                    axes.add_patch(
                        Rectangle((x, y), w, h, fill=False, edgecolor=LIGHT[color],
                                  linewidth=width * points)
                    )  # fmt: skip
            case Line(color, through, width, dashed):
                shape = (0, (2, 3)) if dashed else "solid"
                axes.plot(
                    *zip(*through, strict=True), color=LIGHT[color], linewidth=width * points,
                    linestyle=shape,
                )  # fmt: skip
            case Area(color, through):
                axes.add_patch(Polygon(list(through), color=LIGHT[color], alpha=0.16, linewidth=0))
            case Dot(color, at, radius, hollow):
                inside = LIGHT["page" if hollow else color]
                axes.add_patch(
                    Circle(at, radius, facecolor=inside, edgecolor=LIGHT[color],
                           linewidth=1.6 * points, zorder=3)
                )  # fmt: skip
            case Words(text, (x, y), color, anchor, size_of, bold, up):
                axes.text(
                    x, y, text.replace("$", r"\$"), color=LIGHT[color], fontsize=size_of * points,
                    ha={"start": "left", "middle": "center", "end": "right"}[anchor],
                    va="center_baseline" if not up else "center", rotation=90 if up else 0,
                    rotation_mode="anchor", fontweight="bold" if bold else "normal",
                )  # fmt: skip
    return figure
