"""Where to write labels so that none covers another, a mark, or the edge of a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CHARACTER, LINE = 6.2, 14.0  # CSS pixels of our 11 px type, on the safe side
_DISTANCES = (9.0, 16.0, 26.0, 38.0, 52.0, 70.0, 90.0, 115.0, 145.0, 180.0)
_DIRECTIONS = tuple(2 * math.pi * i / 16 for i in range(16))  # the right-hand side first


@dataclass(frozen=True)
class Rectangle:
    """A part of a picture, in CSS pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Rectangle) -> bool:
        """Whether two share any inner point."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def inside(self, other: Rectangle) -> bool:
        """Whether no part lies outside another."""
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.top <= self.top
            and self.bottom <= other.bottom
        )


def place_labels(
    points: Sequence[tuple[float, float, str]], area: Rectangle, lines: Sequence[Rectangle]
) -> list[Rectangle]:
    """Return where the text of each point goes: near it, on no mark, inside `area`.

    `lines` are better left free, but not at the cost of the rest.
    """
    marks = [Rectangle(x - 6, y - 6, x + 6, y + 6) for x, y, _ in points]
    placed: list[Rectangle] = []
    for x, y, words in points:
        taken = [*marks, *placed]

        def cost(place: tuple[float, Rectangle], taken: list[Rectangle] = taken) -> float:
            distance, box = place
            covers = sum(box.meets(each) for each in taken) + (not box.inside(area))
            return 1000 * covers + 12 * sum(box.meets(each) for each in lines) + distance

        placed.append(min(_candidates(x, y, words), key=cost)[1])
    return placed


def _candidates(x: float, y: float, words: str) -> list[tuple[float, Rectangle]]:
    width = CHARACTER * len(words)
    found = []
    for distance in _DISTANCES:
        for angle in _DIRECTIONS:
            across, down = math.cos(angle), math.sin(angle)
            # The box hangs by the side that faces the point.
            left = x + distance * across - width * (1 - across) / 2
            top = y + distance * down - LINE * (1 - down) / 2
            found.append((distance, Rectangle(left, top, left + width, top + LINE)))
    return found


def spread_labels(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move heights apart to at least `gap`, in their order, between `low` and `high`."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved: list[float] = []
    for i in order:
        moved.append(max(heights[i], moved[-1] + gap if moved else low))
    for k in reversed(range(len(moved))):
        moved[k] = min(moved[k], moved[k + 1] - gap if k + 1 < len(moved) else high)
    return [moved[order.index(i)] for i in range(len(heights))]
