"""The figures: recall against length (Figure 1), drift by layer (Figures 5, 6), heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from amnesia_bench.records.recall import HeatMap
from amnesia_bench.records.report import DriftCurve, ReportedCell, ReportTable, TaskHeatMap
from amnesia_bench.report import svg
from amnesia_bench.report.layout import length_label, task_label

_PANEL, _HEIGHT = 250.0, 170.0
_LEFT, _TOP, _BOTTOM = 44.0, 26.0, 34.0
_COLUMNS = 4
_MARGIN = 0.25  # octaves, so that the first point does not lie on the axis
_TILE_WIDTH, _TILE_HEIGHT = 54.0, 22.0


def recall_figure(table: ReportTable, model: str) -> str | None:
    """Draw recall against length, a panel per task, a line per method; None without any value."""
    tasks = list(dict.fromkeys(c.task for c in table.columns if c.context_tokens is not None))
    if not any(_points(table, model, method, task) for method in table.methods for task in tasks):
        return None
    parts = []
    for i, task in enumerate(tasks):
        lengths = [c.context_tokens for c in table.columns if c.task == task and c.context_tokens]
        box = svg.Box(
            left=_LEFT + i * _PANEL,
            top=_TOP,
            width=_PANEL - 40,
            height=_HEIGHT,
            x_range=(math.log2(min(lengths)) - _MARGIN, math.log2(max(lengths)) + _MARGIN),
            y_range=(0, 1),
        )
        parts += [
            svg.text(box.left + box.width / 2, 14, task_label(task)),
            *_recall_axes(box, lengths),
        ]
        for series, method in enumerate(table.methods):
            parts += _recall_curve(
                box, _points(table, model, method, task), series, len(table.methods)
            )
    width = _LEFT + len(tasks) * _PANEL
    bottom = _TOP + _HEIGHT + _BOTTOM
    parts += _legend(list(table.methods.values()), bottom + 14)
    return svg.picture(
        width, bottom + 24, f"{model}: recall in per cent against context length", parts
    )


def _points(
    table: ReportTable, model: str, method: str, task: str
) -> list[tuple[int, ReportedCell]]:
    columns = [column for column in table.columns if column.task == task]
    return [
        (column.context_tokens, cell)
        for column in columns
        if column.context_tokens is not None
        and (cell := table.cell(model, method, column.key)).value is not None
    ]


def _recall_axes(box: svg.Box, lengths: Sequence[int]) -> list[str]:
    parts = []
    for percent in (0, 25, 50, 75, 100):
        y = box.y(percent / 100)
        parts.append(svg.line(box.left, y, box.left + box.width, y, faint=True))
        parts.append(svg.text(box.left - 6, y + 4, f"{percent}", anchor="end"))
    for length in lengths:
        x = box.x(math.log2(length))
        parts.append(svg.text(x, box.top + box.height + 18, length_label(length)))
    return parts


def _recall_curve(
    box: svg.Box, points: Sequence[tuple[int, ReportedCell]], series: int, of: int
) -> list[str]:
    # Side by side, so that the bars of methods with the same recall can be seen.
    shift = 5 * (series - (of - 1) / 2)
    drawn, bars = [], []
    for length, cell in points:
        assert cell.value is not None
        x = box.x(math.log2(length)) + shift
        drawn.append((x, box.y(cell.value)))
        if cell.interval is not None:
            bars.append(
                svg.error_bar(x, box.y(cell.interval.low), box.y(cell.interval.high), series)
            )
    return [*bars, svg.curve(drawn, series)] if drawn else []


def drift_figure(curves: Sequence[DriftCurve]) -> str:
    """Draw |post - pre| / |pre| of W_Q and W_K by layer, a panel per fine-tune."""
    highest = max(each.drift for curve in curves for each in curve.layers)
    rows = math.ceil(len(curves) / _COLUMNS)
    parts = []
    for i, curve in enumerate(curves):
        layers = sorted({each.layer for each in curve.layers})
        box = svg.Box(
            left=_LEFT + 12 + (i % _COLUMNS) * _PANEL,
            top=_TOP + (i // _COLUMNS) * (_HEIGHT + _TOP + _BOTTOM),
            width=_PANEL - 60,
            height=_HEIGHT,
            x_range=(min(layers), max(layers)),
            y_range=(0, 1.1 * highest or 1.0),
        )
        parts.append(svg.text(box.left + box.width / 2, box.top - 12, curve.label))
        parts += _drift_axes(box, layers, highest)
        for series, role in enumerate(("q", "k")):
            points = [(box.x(e.layer), box.y(e.drift)) for e in curve.layers if e.role == role]
            parts.append(svg.curve(points, series))
    bottom = rows * (_TOP + _HEIGHT + _BOTTOM)
    parts += _legend(["W_Q", "W_K"], bottom + 14)
    width = _LEFT + min(len(curves), _COLUMNS) * _PANEL
    return svg.picture(
        width, bottom + 24, "Drift of W_Q and W_K by layer: |post - pre| / |pre|", parts
    )


def _drift_axes(box: svg.Box, layers: Sequence[int], highest: float) -> list[str]:
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = box.y(share * highest)
        parts.append(svg.line(box.left, y, box.left + box.width, y, faint=True))
        parts.append(svg.text(box.left - 6, y + 4, f"{100 * share * highest:.2g} %", anchor="end"))
    step = math.ceil(len(layers) / 10)
    for layer in layers[::step]:
        parts.append(svg.text(box.x(layer), box.top + box.height + 16, str(layer)))
    parts.append(svg.text(box.left + box.width / 2, box.top + box.height + 30, "layer"))
    return parts


def heat_map_figure(maps: Sequence[TaskHeatMap], methods: Mapping[str, str]) -> str:
    """Draw maps side by side: depth downwards, length to the right, recall and n in each tile."""
    parts: list[str] = []
    left = 58.0
    rows = max(len(each.map.n) for each in maps)
    for each in maps:
        parts += _heat_panel(each, methods.get(each.map.role, each.map.role), left, first=not parts)
        left += max(110.0, len(each.map.context_tokens) * _TILE_WIDTH + 22)
    title = (
        f"{maps[0].model}, {task_label(maps[0].task)}: recall by depth and length, in per cent (n)"
    )
    return svg.picture(left, 52 + rows * _TILE_HEIGHT, title, parts)


def _heat_panel(each: TaskHeatMap, label: str, left: float, *, first: bool) -> list[str]:
    found: HeatMap = each.map
    width = len(found.context_tokens) * _TILE_WIDTH
    parts = [svg.text(left + width / 2, 14, label)]
    for row, low in enumerate(found.depth_edges[:-1]):
        y = _TOP + row * _TILE_HEIGHT
        if first:
            edges = f"{low:.0f}-{found.depth_edges[row + 1]:.0f} %"
            parts.append(svg.text(left - 6, y + 15, edges, anchor="end"))
        for column in range(len(found.context_tokens)):
            x, n = left + column * _TILE_WIDTH, found.n[row][column]
            share = found.correct[row][column] / n if n else None
            parts.append(svg.tile(x, y, _TILE_WIDTH - 1, _TILE_HEIGHT - 1, share))
            if share is not None:
                words = f"{100 * share:.0f} ({n})"
                parts.append(svg.tile_text(x + _TILE_WIDTH / 2, y + 15, words, share))
    bottom = _TOP + len(found.n) * _TILE_HEIGHT
    for column, length in enumerate(found.context_tokens):
        x = left + (column + 0.5) * _TILE_WIDTH
        parts.append(svg.text(x, bottom + 14, length_label(length)))
    return parts


def _legend(labels: Sequence[str], y: float) -> list[str]:
    parts, x = [], _LEFT
    for series, label in enumerate(labels):
        parts.append(svg.curve([(x, y - 4), (x + 22, y - 4)], series))
        parts.append(svg.text(x + 30, y, label, anchor="start"))
        x += 50 + 7 * len(label)
    return parts
