"""Place labels so that none overlaps another label, a marker, or the edge of a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CHARACTER, LINE = 6.2, 14.0  # upper bounds for the 11 px font, in CSS pixels
_DISTANCES = (9.0, 16.0, 26.0, 38.0, 52.0, 70.0, 90.0, 115.0, 145.0, 180.0)
_DIRECTIONS = tuple(2 * math.pi * i / 16 for i in range(16))  # angles; the first points right


@dataclass(frozen=True)
class Rectangle:
    """A rectangular area of a picture, in CSS pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Rectangle) -> bool:
        """Return whether two rectangles overlap."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def inside(self, other: Rectangle) -> bool:
        """Return whether this rectangle is completely inside another."""
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.top <= self.top
            and self.bottom <= other.bottom
        )


def place_labels(
    points: Sequence[tuple[float, float, str]], area: Rectangle, lines: Sequence[Rectangle]
) -> list[Rectangle]:
    """Return a rectangle for the label of each point, near the point and inside `area` if possible.

    Labels avoid all markers and other labels and, with lower priority, `lines`.
    """
    marks = [Rectangle(x - 6, y - 6, x + 6, y + 6) for x, y, _ in points]
    placed: list[Rectangle] = []
    for x, y, words in points:
        obstacles = [*marks, *placed]

        def cost(
            candidate: tuple[float, Rectangle], obstacles: list[Rectangle] = obstacles
        ) -> float:
            distance, box = candidate
            overlaps = sum(box.meets(obstacle) for obstacle in obstacles) + (not box.inside(area))
            return 1000 * overlaps + 12 * sum(box.meets(line) for line in lines) + distance

        placed.append(min(_candidates(x, y, words), key=cost)[1])
    return placed


def _candidates(x: float, y: float, words: str) -> list[tuple[float, Rectangle]]:
    width = CHARACTER * len(words)
    candidates = []
    for distance in _DISTANCES:
        for angle in _DIRECTIONS:
            across, down = math.cos(angle), math.sin(angle)
            # The side of the rectangle that faces the point is at the given distance from it.
            left = x + distance * across - width * (1 - across) / 2
            top = y + distance * down - LINE * (1 - down) / 2
            candidates.append((distance, Rectangle(left, top, left + width, top + LINE)))
    return candidates


def spread_labels(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return heights moved at least `gap` apart, in the same order, between `low` and `high`."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved: list[float] = []
    for i in order:
        moved.append(max(heights[i], moved[-1] + gap if moved else low))
    for k in reversed(range(len(moved))):
        moved[k] = min(moved[k], moved[k + 1] - gap if k + 1 < len(moved) else high)
    return [moved[order.index(i)] for i in range(len(heights))]
