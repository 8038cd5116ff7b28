"""Format the shapes of figures as SVG text, without a library, scripts or external resources.

Text and axes have the text colour of the page (`currentColor`); coordinates are in CSS pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from html import escape

INK = "currentColor"
FAINT, PALE = 0.2, 0.5  # opacities of grid lines, and of lines that join points or labels
FONT = "font-family:system-ui,sans-serif;font-size:11px"
# The cividis colour map (Nunez, Anderton and Renslow 2018); low values are dark, also in greyscale.
_CIVIDIS = ("#00224e", "#35456c", "#666970", "#948e77", "#c8b866", "#fee838")


class Shape(StrEnum):
    """The shapes of a marker."""

    CIRCLE = "circle"
    SQUARE = "square"
    TRIANGLE = "triangle"
    DIAMOND = "diamond"
    CROSS = "cross"


@dataclass(frozen=True)
class Mark:
    """The style of a data series; marker shape and dashes identify it even without its colour."""

    colour: str
    shape: Shape
    dashes: str


# The colours are those of Okabe and Ito (2008), which colour-blind readers can distinguish, without
# yellow, which is hard to see on white. A method has the same style in every figure.
MARKS = {
    "pre": Mark(INK, Shape.CIRCLE, ""),
    "post": Mark("#d55e00", Shape.SQUARE, "5 3"),
    "restored": Mark("#0072b2", Shape.TRIANGLE, ""),
    "qk_pro": Mark("#009e73", Shape.DIAMOND, "8 3 2 3"),
    "q": Mark("#cc79a7", Shape.CIRCLE, "2 3"),
    "k": Mark("#e69f00", Shape.SQUARE, "2 3"),
    "v": Mark("#56b4e9", Shape.TRIANGLE, "1 3"),
    "qk_frozen": Mark(INK, Shape.CROSS, "1 3"),
}
OTHER_MARK = Mark(INK, Shape.DIAMOND, "8 3")


@dataclass(frozen=True, kw_only=True)
class Box:
    """The area of a picture in which data are drawn, and the value ranges of its two axes."""

    left: float
    top: float
    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        """Return the x coordinate of a value."""
        low, high = self.x_range
        return self.left + self.width * ((value - low) / (high - low) if high > low else 0.5)

    def y(self, value: float) -> float:
        """Return the y coordinate of a value; larger values are drawn higher."""
        low, high = self.y_range
        return self.top + self.height * (1 - (value - low) / (high - low))


def picture(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """Return an `<svg>` element that shrinks with the page; screen readers read `title` aloud."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" role="img" style="max-width:100%;height:auto;{FONT}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def standalone(drawing: str) -> str:
    """Return a picture with fixed text and background colours, for use outside the page."""
    return drawing.replace('style="', 'style="color:#1a1a1a;background:#ffffff;', 1)


def text(x: float, y: float, words: str, *, anchor: str = "middle", style: str = "") -> str:
    """Return a line of text with its baseline at y."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor" '
        f'style="{escape(style)}">{escape(words)}</text>'
    )


def line(
    x1: float, y1: float, x2: float, y2: float, *, colour: str = INK, opacity: float = 1.0
) -> str:
    """Return a straight line."""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}" stroke-opacity="{opacity:g}"/>'
    )


def curve(points: Sequence[tuple[float, float]], mark: Mark) -> str:
    """Return a line through points with a marker at each point."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    drawn = (
        f'<polyline points="{path}" fill="none" stroke="{mark.colour}" stroke-width="2" '
        f'stroke-dasharray="{mark.dashes}"/>'
    )
    return drawn + "".join(marker(x, y, mark) for x, y in points)


_CORNERS = {
    Shape.SQUARE: ((-4, -4), (4, -4), (4, 4), (-4, 4)),
    Shape.TRIANGLE: ((0, -5), (5, 4), (-5, 4)),
    Shape.DIAMOND: ((0, -5), (5, 0), (0, 5), (-5, 0)),
}


def marker(x: float, y: float, mark: Mark) -> str:
    """Return a marker with its centre at a point."""
    if mark.shape is Shape.CIRCLE:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{mark.colour}"/>'
    if mark.shape is Shape.CROSS:
        strokes = ((-4, -4, 4, 4), (-4, 4, 4, -4))
        return "".join(
            line(x + x1, y + y1, x + x2, y + y2, colour=mark.colour) for x1, y1, x2, y2 in strokes
        )
    path = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in _CORNERS[mark.shape])
    return f'<polygon points="{path}" fill="{mark.colour}"/>'


def error_bar(x: float, low: float, high: float, mark: Mark) -> str:
    """Return a vertical bar between two heights."""
    return line(x, low, x, high, colour=mark.colour)


def tile(x: float, y: float, width: float, height: float, share: float | None) -> str:
    """Return a heat map tile coloured by `share`, or an empty dashed frame if `share` is None."""
    if share is None:
        return (
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="none" '
            'stroke="currentColor" stroke-opacity="0.3" stroke-dasharray="3 3"/>'
        )
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'fill="{shade(share)}"/>'
    )


def shade(share: float) -> str:
    """Return the colour that represents a share from 0 to 1."""
    position = min(max(share, 0.0), 1.0) * (len(_CIVIDIS) - 1)
    i = min(int(position), len(_CIVIDIS) - 2)
    low, high = ([int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in _CIVIDIS[i : i + 2])
    mixed = (round(a + (b - a) * (position - i)) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def tile_text(x: float, y: float, words: str, share: float) -> str:
    """Return a text in a colour that is readable on a tile with the colour of `share`."""
    colour = "#ffffff" if share < 0.47 else "#000000"
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" fill="{colour}">{escape(words)}</text>'
    )
