"""Labels lie beside their points and on nothing else."""

from itertools import combinations

import numpy as np
import pytest

from amnesia_bench.drawing.labels import LINE, Rectangle, place_labels, spread_labels

AREA = Rectangle(50, 10, 750, 370)


@pytest.mark.parametrize("seed", range(20))
def test_no_label_covers_another_or_a_point_or_leaves_the_figure(seed: int) -> None:
    random = np.random.default_rng(seed)
    # Two crowds, as trade-offs have.
    centres = random.choice([[90.0, 60.0], [600.0, 250.0]], size=14)
    points = [
        (float(x), float(y), "Some instructions, restored"[: 5 + int(random.integers(20))])
        for x, y in (centres + random.normal(scale=25, size=(14, 2))).clip((60, 20), (740, 360))
    ]
    boxes = place_labels(points, AREA, [])
    for one, other in combinations(boxes, 2):
        assert not one.meets(other)
    for box in boxes:
        assert box.inside(AREA)
        for x, y, _ in points:
            assert not box.meets(Rectangle(x - 5, y - 5, x + 5, y + 5))


def test_a_label_keeps_off_a_line_where_there_is_room() -> None:
    line = Rectangle(300, 195, 500, 205)
    (box,) = place_labels([(300.0, 200.0, "point")], AREA, [line])
    assert not box.meets(line)


def test_heights_are_spread_in_their_order() -> None:
    moved = spread_labels([50.0, 52.0, 51.0, 200.0], LINE, 0, 210)
    assert moved[0] < moved[2] < moved[1] < moved[3] == 200
    assert min(np.diff(sorted(moved))) >= LINE
    crowded = spread_labels([100.0] * 5, LINE, 30, 100)
    assert max(crowded) == 100
    assert min(np.diff(sorted(crowded))) >= LINE


def test_too_many_for_the_height_stay_apart_all_the_same() -> None:
    assert min(np.diff(sorted(spread_labels([0.0] * 9, 14, 0, 50)))) >= 14
