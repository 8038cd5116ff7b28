"""Draw recall against reasoning, which shows the trade-off of each fine-tune and repair."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise

from amnesia_bench.drawing import svg
from amnesia_bench.drawing.labels import LINE, Rectangle, place_labels
from amnesia_bench.records.report import ReportedCell, TradeOffCurve, TradeOffPoint

_WIDTH, _HEIGHT = 760.0, 400.0
_LEFT, _TOP, _BOTTOM = 58.0, 14.0, 42.0
_ROUND = 0.1  # axes end at multiples of this value


def trade_off_figure(curve: TradeOffCurve) -> str:
    """Draw a point per row, its label and intervals if any, and lines that connect points."""
    box = svg.Box(
        left=_LEFT,
        top=_TOP,
        width=_WIDTH - _LEFT - 16,
        height=_HEIGHT - _TOP - _BOTTOM,
        x_range=_range(point.score for point in curve.points),
        y_range=_range(point.recall for point in curve.points),
    )
    at = {point.row: (_x(box, point), _y(box, point)) for point in curve.points}
    recall = f"{curve.recall.group} at {curve.recall.label}"
    score = f"{curve.score.group} {curve.score.label}".strip()
    parts = [*_axes(box, score, recall)]
    busy: list[Rectangle] = []
    for rows in curve.lines:
        corners = [at[row] for row in rows if row in at]
        for start, end in pairwise(corners):
            parts.append(svg.line(*start, *end, opacity=svg.PALE))
            busy += _line_obstacles(start, end)
    for point in curve.points:
        for bar in _bars(box, point):
            ends = (bar.left, bar.top, bar.right, bar.bottom)
            parts.append(svg.line(*ends, colour=_mark(point.row).colour))
            busy.append(bar)
    for point in curve.points:
        parts.append(svg.marker(*at[point.row], _mark(point.row)))
    area = Rectangle(box.left, box.top, box.left + box.width, box.top + box.height)
    labelled = [(*at[point.row], point.label) for point in curve.points if point.label]
    for (x, y, words), place in zip(labelled, place_labels(labelled, area, busy), strict=True):
        parts += _label(x, y, words, place)
    return svg.picture(_WIDTH, _HEIGHT, f"{curve.model}: recall against reasoning", parts)


def _mark(row: str) -> svg.Mark:
    return svg.MARKS.get(row.partition("@")[0], svg.OTHER_MARK)


def _x(box: svg.Box, point: TradeOffPoint) -> float:
    return box.x(point.score.value or 0.0)


def _y(box: svg.Box, point: TradeOffPoint) -> float:
    return box.y(point.recall.value or 0.0)


def _ends(cell: ReportedCell) -> tuple[float, float]:
    value = cell.value or 0.0
    return (value, value) if cell.interval is None else (cell.interval.low, cell.interval.high)


def _range(cells: Iterable[ReportedCell]) -> tuple[float, float]:
    ends = [end for cell in cells for end in _ends(cell)]
    low, high = math.floor(min(ends) / _ROUND), math.ceil(max(ends) / _ROUND)
    return low * _ROUND, max(high, low + 1) * _ROUND


def _bars(box: svg.Box, point: TradeOffPoint) -> Iterator[Rectangle]:
    """Yield the interval of the score, then the interval of recall, as flat rectangles."""
    x, y = _x(box, point), _y(box, point)
    left, right = (box.x(end) for end in _ends(point.score))
    bottom, top = (box.y(end) for end in _ends(point.recall))
    yield Rectangle(left, y, right, y)
    yield Rectangle(x, top, x, bottom)


def _line_obstacles(start: tuple[float, float], end: tuple[float, float]) -> Iterator[Rectangle]:
    """Yield small rectangles along a line, which labels should not overlap."""
    steps = max(1, round(math.dist(start, end) / 6))
    for i in range(steps + 1):
        x, y = (a + (b - a) * i / steps for a, b in zip(start, end, strict=True))
        yield Rectangle(x - 1, y - 1, x + 1, y + 1)


def _axes(box: svg.Box, score: str, recall: str) -> Iterator[str]:
    for tenth in range(round(10 * box.x_range[0]), round(10 * box.x_range[1]) + 1):
        x = box.x(tenth / 10)
        yield svg.line(x, box.top, x, box.top + box.height, opacity=svg.FAINT)
        yield svg.text(x, box.top + box.height + 16, f"{10 * tenth}")
    for tenth in range(round(10 * box.y_range[0]), round(10 * box.y_range[1]) + 1):
        y = box.y(tenth / 10)
        yield svg.line(box.left, y, box.left + box.width, y, opacity=svg.FAINT)
        yield svg.text(box.left - 6, y + 4, f"{10 * tenth}", anchor="end")
    yield svg.text(box.left + box.width / 2, box.top + box.height + 34, f"{score}, per cent")
    middle = box.top + box.height / 2
    turned = f"transform-origin:16px {middle:.1f}px;transform:rotate(-90deg)"
    yield svg.text(16, middle, f"{recall}, per cent", style=turned)


def _label(x: float, y: float, words: str, place: Rectangle) -> Iterator[str]:
    middle = (place.left + place.right) / 2
    nearest_x = min(max(x, place.left), place.right)
    nearest_y = min(max(y, place.top), place.bottom)
    if math.hypot(nearest_x - x, nearest_y - y) > LINE:
        yield svg.line(x, y, nearest_x, nearest_y, opacity=svg.PALE)
    yield svg.text(middle, place.bottom - 3, words)
