"""Format result tables as HTML; each number links to its stage in the list of sources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby

from amnesia_bench.records.report import (
    CellStatus,
    Column,
    Origin,
    Report,
    ReportedCell,
    ReportTable,
)
from amnesia_bench.reporting.table_layout import full_name
from amnesia_bench.reporting.text_formats import address
from amnesia_bench.reporting.wording import (
    format_cell_size,
    format_marks,
    format_percent,
    format_points,
    format_reference,
    format_test,
)

# The HTML id of each origin's entry in the list of sources.
Anchors = Mapping[Origin, str]


def anchors_of(report: Report) -> Anchors:
    """Return an HTML id for every origin, numbered in the order of first use in the tables."""
    cells = [cell for table_report in report.tables for cell in table_report.table.cells]
    origins = dict.fromkeys(origin for cell in cells for origin in cell.origins)
    return {origin: f"source-{i}" for i, origin in enumerate(origins, start=1)}


def results(table: ReportTable, anchors: Anchors) -> str:
    """Return a table of results in the paper's layout as HTML."""
    groups = [(name, len(list(same))) for name, same in groupby(c.group for c in table.columns)]
    top = "".join(f"<th colspan={count} class=group>{escape(name)}</th>" for name, count in groups)
    heads = "".join(
        f"<th{_group_border(table, i)}>{escape(column.label)}</th>"
        for i, column in enumerate(table.columns)
    )
    published = any(cell.theirs is not None for cell in table.cells)
    rows = []
    for model in table.models:
        rows.append(
            f"<tr class=model><th colspan={1 + len(table.columns)}>{escape(model)}</th></tr>"
        )
        for method, label in table.methods.items():
            cells = []
            for i, column in enumerate(table.columns):
                cell = table.cell(model, method, column.key)
                tooltip = escape("\n".join(_tooltip_lines(cell, column)), quote=True)
                small = format_reference(cell, published=published)
                cells.append(
                    f'<td{_group_border(table, i)} title="{tooltip}">{_cell_html(cell, anchors)}'
                    + (f"<small>{escape(small)}</small></td>" if small else "</td>")
                )
            rows.append(f"<tr><th>{escape(label)}</th>{''.join(cells)}</tr>")
    return (
        f"<table class=results><thead><tr><th></th>{top}</tr><tr><th></th>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _group_border(table: ReportTable, i: int) -> str:
    """Return the class attribute of column `i`; the first column of a group has a left border."""
    return " class=first" if i and table.columns[i].group != table.columns[i - 1].group else ""


def _cell_html(cell: ReportedCell, anchors: Anchors) -> str:
    if cell.status is CellStatus.MISSING:
        return "<span class=missing>-</span>"
    if cell.status is CellStatus.INCOMPLETE:
        return "<span class=incomplete>incomplete</span>"
    link = f'<a href="#{anchors[cell.origins[0]]}">{format_percent(cell.value)}</a>'
    return link + format_marks(cell)


def _tooltip_lines(cell: ReportedCell, column: Column) -> Iterator[str]:
    yield f"{column.group} {column.label}, {cell.method}: {cell.status}"
    if cell.reason:
        yield cell.reason
    if cell.interval is not None:
        low, high = format_percent(cell.interval.low), format_percent(cell.interval.high)
        counts = format_cell_size(cell)
        yield f"95 % interval {low} to {high} ({cell.interval.method}), {counts}"
    if cell.difference is not None:
        inside = "inside" if cell.theirs_inside else "outside"
        difference = format_points(cell.difference)
        yield f"{difference} points from the paper, whose value is {inside} our interval"
    if cell.against_post is not None:
        yield format_test(cell.against_post)
    for seed, value in cell.by_seed.items():
        yield f"seed {seed}: {format_percent(value)}"
    for origin in cell.origins:
        yield f"stage {origin.stage}, commit {(origin.commit or 'unknown')[:12]}"
        for manifest in origin.dirty:
            yield f"uncommitted changes: {manifest}"


def sources(tables: Sequence[ReportTable], anchors: Anchors) -> str:
    """Return an HTML table of the stages from which the numbers come."""
    rows_of: dict[Origin, dict[str, None]] = {}
    for table in tables:
        for cell in table.cells:
            for origin in cell.origins:
                row = f"{cell.model} {full_name(cell.method, table.sft)}"
                rows_of.setdefault(origin, {})[row] = None
    if not rows_of:
        return "<p>No cell is measured yet.</p>"
    lines = []
    for origin, rows in rows_of.items():
        link = address(origin)
        stage = escape(origin.stage)
        if link is not None:
            stage = f'<a href="{escape(link, quote=True)}">{stage}</a>'
        dirty = escape("† " + ", ".join(origin.dirty)) if origin.dirty else ""
        lines.append(
            f"<tr id={anchors[origin]}><td>{escape(', '.join(rows))}<td>"
            f"{escape(origin.seed or '-')}<td>{stage}"
            f"<td><code>{(origin.manifest_sha256 or '-')[:12]}</code>"
            f"<td><code>{escape((origin.commit or '-')[:12])}</code><td>{dirty}</tr>"
        )
    return (
        "<table class=sources><thead><tr><th>rows<th>seed<th>stage<th>manifest sha256"
        f"<th>commit<th>uncommitted changes</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )
