"""Pareto fronts and hypervolumes against other formulas."""

from __future__ import annotations

import numpy as np
import pytest

from amnesia_bench.tuning.pareto import dominates, front_of, hypervolume


def random_points(seed: int) -> list[tuple[float, float]]:
    rng = np.random.default_rng(seed)
    # Few different values, so that points share coordinates.
    return [(float(a), float(b)) for a, b in rng.integers(0, 8, (int(rng.integers(1, 12)), 2)) / 7]


@pytest.mark.parametrize("seed", range(50))
def test_the_hypervolume_is_the_area_of_the_union_of_rectangles(seed: int) -> None:
    points = random_points(seed)
    # All coordinates are multiples of 1/7, so each cell of this grid is inside or outside.
    cells = sum(any(x > i / 7 and y > j / 7 for x, y in points) for i in range(7) for j in range(7))
    assert hypervolume(points) == pytest.approx(cells / 49)


@pytest.mark.parametrize("seed", range(50))
def test_only_the_front_adds_to_the_hypervolume(seed: int) -> None:
    points = random_points(seed)
    front = front_of(points)
    assert hypervolume([points[i] for i in front]) == pytest.approx(hypervolume(points))
    for i, point in enumerate(points):
        assert (i in front) != any(dominates(other, point) for other in points)


def test_known_values() -> None:
    assert hypervolume([]) == 0
    assert hypervolume([(1.0, 1.0)]) == 1
    assert hypervolume([(0.5, 1.0), (1.0, 0.5)]) == pytest.approx(0.75)
    assert hypervolume([(0.5, 0.5)] * 3) == pytest.approx(0.25)
    assert front_of([(0.5, 0.5), (0.5, 0.5), (0.4, 0.5)]) == (0, 1)
