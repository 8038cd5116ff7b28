"""Draw the figures: recall by length (Figure 1), drift by layer (Figures 5, 6) and heat maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from amnesia_bench.drawing import svg
from amnesia_bench.drawing.labels import CHARACTER, LINE, spread_labels
from amnesia_bench.records.ids import BEFORE_SFT
from amnesia_bench.records.recall import HeatMap
from amnesia_bench.records.report import (
    DriftCurve,
    Report,
    ReportedCell,
    ReportTable,
    TableReport,
    TaskHeatMap,
)
from amnesia_bench.reporting.cause_figures import cause_figures
from amnesia_bench.reporting.table_layout import length_label, task_label
from amnesia_bench.reporting.trade_off_figure import trade_off_figure

_PANEL, _HEIGHT = 250.0, 170.0
_LEFT, _TOP, _BOTTOM = 44.0, 26.0, 34.0
_COLUMNS = 4
_MARGIN = 0.25  # distance in octaves (doublings of the length) between the axis and the first point
_SHIFT = 5.0  # horizontal offset between methods, so that error bars at equal recall do not overlap
_TILE_WIDTH, _TILE_HEIGHT = 54.0, 22.0
_MAX_WIDTH = 1200.0  # width of a laptop's screen minus the page margins


def figures_of(report: Report) -> dict[str, str]:
    """Return every figure for which there are data, as SVG text by file name without suffix."""
    drawn = drift_figures(report)
    if report.causes is not None:
        drawn |= cause_figures(report.causes)
    for table_report in report.tables:
        figures = figures_on(table_report) | heat_maps_on(table_report)
        prefix = table_report.table.name
        drawn |= {f"{prefix}_{name}": drawing for name, drawing in figures.items()}
    return drawn


def figures_on(report: TableReport) -> dict[str, str]:
    """Return the recall and trade-off figures of a table by name."""
    drawn = {
        f"trade_off_{_file_name(curve.model)}": trade_off_figure(curve)
        for curve in report.trade_offs
    }
    for model in report.table.models:
        if (figure := recall_figure(report.table, model)) is not None:
            drawn[f"recall_{_file_name(model)}"] = figure
    return drawn


def heat_maps_on(report: TableReport) -> dict[str, str]:
    """Return the heat map figures of a table by name, one per model and task."""
    groups = groupby(report.heat_maps, lambda task_map: (task_map.model, task_map.task))
    return {
        f"heat_map_{_file_name(model)}_{task}": heat_map_figure(list(maps), report.table.methods)
        for (model, task), maps in groups
    }


def drift_figures(report: Report) -> dict[str, str]:
    """Return the drift figure of all fine-tunes by name; empty if there are no drift data."""
    return {"drift": drift_figure(report.drift)} if report.drift else {}


def _file_name(model: str) -> str:
    return model.replace("/", "_")


def recall_figure(table: ReportTable, model: str) -> str | None:
    """Draw recall against length, with a panel per task and a line per method.

    Each fine-tune has a separate row of panels, which includes the line of the checkpoint before
    SFT. Return None if no value was measured.
    """
    tasks = list(dict.fromkeys(c.task for c in table.columns if c.context_tokens is not None))
    bands = [
        rows
        for rows in _bands(table)
        if any(_points(table, model, row, task) for row in rows for task in tasks)
    ]
    if not bands:
        return None
    parts = []
    for i, rows in enumerate(bands):
        top = _TOP + i * (_HEIGHT + _TOP + _BOTTOM)
        parts += _recall_band(table, model, rows, tasks, top)
    labels = max(len(label) for label in table.methods.values())
    width = _LEFT + len(tasks) * _PANEL + 24 + CHARACTER * labels
    height = len(bands) * (_TOP + _HEIGHT + _BOTTOM)
    return svg.picture(width, height, f"{model}: recall in per cent against context length", parts)


def _bands(table: ReportTable) -> list[list[str]]:
    """Return one list of table rows per fine-tune, each of which includes the row before SFT.

    Rows that have no mark of their own are omitted, since their lines could not be told apart.
    """
    marked = [row for row in table.methods if row.partition("@")[0] in svg.MARKS]
    tunes = dict.fromkeys(row.partition("@")[2] for row in marked if row != BEFORE_SFT)
    return [
        [row for row in marked if row == BEFORE_SFT or row.partition("@")[2] == tune]
        for tune in tunes
    ] or [marked]


def _recall_band(
    table: ReportTable, model: str, rows: Sequence[str], tasks: Sequence[str], top: float
) -> list[str]:
    parts, ends = [], dict.fromkeys(rows, (0.0, top + _HEIGHT))
    for i, task in enumerate(tasks):
        lengths = [c.context_tokens for c in table.columns if c.task == task and c.context_tokens]
        box = svg.Box(
            left=_LEFT + i * _PANEL,
            top=top,
            width=_PANEL - 40,
            height=_HEIGHT,
            x_range=(math.log2(min(lengths)) - _MARGIN, math.log2(max(lengths)) + _MARGIN),
            y_range=(0, 1),
        )
        parts += [
            svg.text(box.left + box.width / 2, top - 12, task_label(task)),
            *_recall_axes(box, lengths),
        ]
        for k, row in enumerate(rows):
            shift = _SHIFT * (k - (len(rows) - 1) / 2)
            points = _points(table, model, row, task)
            drawn = [(box.x(math.log2(n)) + shift, box.y(cell.value or 0.0)) for n, cell in points]
            bars = [
                svg.error_bar(x, box.y(cell.interval.low), box.y(cell.interval.high), _mark(row))
                for (x, _), (_, cell) in zip(drawn, points, strict=True)
                if cell.interval is not None
            ]
            if drawn:
                parts += [*bars, svg.curve(drawn, _mark(row))]
                ends[row] = drawn[-1]
    x = _LEFT + len(tasks) * _PANEL
    heights = spread_labels([y for _, y in ends.values()], LINE, top, top + _HEIGHT)
    for row, y in zip(rows, heights, strict=True):
        parts.append(svg.marker(x - 16, y, _mark(row)))
        parts.append(svg.text(x - 6, y + 4, table.methods[row], anchor="start"))
    return parts


def _mark(row: str) -> svg.Mark:
    return svg.MARKS.get(row.partition("@")[0], svg.OTHER_MARK)


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
        parts.append(svg.line(box.left, y, box.left + box.width, y, opacity=svg.FAINT))
        parts.append(svg.text(box.left - 6, y + 4, f"{percent}", anchor="end"))
    for length in lengths:
        x = box.x(math.log2(length))
        parts.append(svg.text(x, box.top + box.height + 18, length_label(length)))
    return parts


def drift_figure(curves: Sequence[DriftCurve]) -> str:
    """Draw the drift |post - pre| / |pre| of W_Q and W_K by layer, one panel per fine-tune."""
    highest = max(layer.drift for curve in curves for layer in curve.layers)
    rows = math.ceil(len(curves) / _COLUMNS)
    parts = []
    for i, curve in enumerate(curves):
        layers = sorted({layer_drift.layer for layer_drift in curve.layers})
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
        for role in ("q", "k"):
            points = [(box.x(e.layer), box.y(e.drift)) for e in curve.layers if e.role == role]
            parts.append(svg.curve(points, svg.MARKS[role]))
    bottom = rows * (_TOP + _HEIGHT + _BOTTOM)
    for i, role in enumerate(("q", "k")):
        x = _LEFT + 12 + 70 * i
        parts.append(svg.curve([(x, bottom + 10), (x + 22, bottom + 10)], svg.MARKS[role]))
        parts.append(svg.text(x + 30, bottom + 14, f"W_{role.upper()}", anchor="start"))
    width = _LEFT + max(min(len(curves), _COLUMNS) * _PANEL, 160)
    return svg.picture(
        width, bottom + 24, "Drift of W_Q and W_K by layer: |post - pre| / |pre|", parts
    )


def _drift_axes(box: svg.Box, layers: Sequence[int], highest: float) -> list[str]:
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = box.y(share * highest)
        parts.append(svg.line(box.left, y, box.left + box.width, y, opacity=svg.FAINT))
        parts.append(svg.text(box.left - 6, y + 4, f"{100 * share * highest:.2g} %", anchor="end"))
    step = math.ceil(len(layers) / 10)
    for layer in layers[::step]:
        parts.append(svg.text(box.x(layer), box.top + box.height + 16, str(layer)))
    parts.append(svg.text(box.left + box.width / 2, box.top + box.height + 30, "layer"))
    return parts


def heat_map_figure(maps: Sequence[TaskHeatMap], methods: Mapping[str, str]) -> str:
    """Draw heat maps side by side; rows are depths, columns are lengths, tiles show recall, n."""
    columns = max(len(task_map.map.context_tokens) for task_map in maps)
    rows = max(len(task_map.map.n) for task_map in maps)
    panel = max(110.0, columns * _TILE_WIDTH + 22)
    across = max(1, min(len(maps), int((_MAX_WIDTH - 58) // panel)))
    down = _TOP + rows * _TILE_HEIGHT + 30
    parts: list[str] = []
    for i, task_map in enumerate(maps):
        left, top = 58 + (i % across) * panel, _TOP + (i // across) * down
        label = methods.get(task_map.map.role, task_map.map.role)
        parts += _heat_panel(task_map.map, label, left, top, depths=i % across == 0)
    title = (
        f"{maps[0].model}, {task_label(maps[0].task)}: recall by depth and length, in per cent (n)"
    )
    return svg.picture(58 + across * panel, math.ceil(len(maps) / across) * down, title, parts)


def _heat_panel(
    heat_map: HeatMap, label: str, left: float, top: float, *, depths: bool
) -> list[str]:
    width = len(heat_map.context_tokens) * _TILE_WIDTH
    parts = [svg.text(left + width / 2, top - 8, label)]
    for row, low in enumerate(heat_map.depth_edges[:-1]):
        y = top + row * _TILE_HEIGHT
        if depths:
            edges = f"{low:.0f}-{heat_map.depth_edges[row + 1]:.0f} %"
            parts.append(svg.text(left - 6, y + 15, edges, anchor="end"))
        for column in range(len(heat_map.context_tokens)):
            x, n = left + column * _TILE_WIDTH, heat_map.n[row][column]
            share = heat_map.correct[row][column] / n if n else None
            parts.append(svg.tile(x, y, _TILE_WIDTH - 1, _TILE_HEIGHT - 1, share))
            if share is not None:
                words = f"{100 * share:.0f} ({n})"
                parts.append(svg.tile_text(x + _TILE_WIDTH / 2, y + 15, words, share))
    bottom = top + len(heat_map.n) * _TILE_HEIGHT
    for column, length in enumerate(heat_map.context_tokens):
        x = left + (column + 0.5) * _TILE_WIDTH
        parts.append(svg.text(x, bottom + 14, length_label(length)))
    return parts
