"""Pareto fronts and hypervolumes of points with two objectives, both to be maximised."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]


def dominates(a: Point, b: Point) -> bool:
    """Return whether `a` is at least as good as `b` in both objectives, and better in one."""
    return a[0] >= b[0] and a[1] >= b[1] and a != b


def front_of(points: Sequence[Point]) -> tuple[int, ...]:
    """Return the indices of the points that no other point dominates; of equal points, all."""
    return tuple(
        i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)
    )


def hypervolume(points: Sequence[Point]) -> float:
    """Return the area that the points dominate, down to the point (0, 0).

    With shares from 0 to 1, it is 1 for a perfect point and 0 without points.
    """
    area, top = 0.0, 0.0
    for x, y in sorted(points, reverse=True):
        if y > top:
            area += x * (y - top)
            top = y
    return area
