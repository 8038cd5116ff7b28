"""The report as one page: HTML and inline SVG in a single file, no script, nothing fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from amnesia_bench.records import codec
from amnesia_bench.records.report import (
    CellStatus,
    ClaimVerdict,
    Column,
    DecidedClaim,
    Report,
    ReportedCell,
    ReportTable,
)
from amnesia_bench.report.figures import drift_figure, heat_map_figure, recall_figure
from amnesia_bench.report.text_formats import incomplete, link, made_by
from amnesia_bench.report.wording import (
    LEGEND,
    SIGNIFICANT,
    condition,
    marks,
    percent,
    points,
    summary,
)

# Signs besides colours: a page may be printed, or read by someone who sees no red.
_SIGNS = {
    ClaimVerdict.HOLDS: ("yes", "✓"),
    ClaimVerdict.DOES_NOT_HOLD: ("no", "✗"),
    ClaimVerdict.NOT_SHOWN: ("open", "?"),
}
_STYLE = Path(__file__).with_name("page.css")


def page(report: Report, out: Path) -> str:
    """Return the page; its links are relative to the folder `out`."""
    table = report.table
    body = [
        f"<h1>{escape(table.title)}</h1>",
        f"<p class=muted>{escape(summary(report))}</p>",
        "<h2>Claims</h2>",
        _claims(report.claims),
        "<h2>Ours and the paper's</h2>",
        _table(table, out),
        f"<p class=muted>{escape(LEGEND)}</p>",
        _list("Incomplete", incomplete(table)),
        *_figures(report),
        "<h2>Sources</h2>",
        _sources(table, out),
        _list("Of the paper's numbers", table.remarks),
        _list("Notes", report.notes),
        f"<footer class=muted>{escape(made_by(report))}<br>"
        f"<code>{escape(' '.join(report.command))}</code></footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Without it a browser asks for favicon.ico.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(table.title)}</title>\n<style>\n"
        f"{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body>\n</html>\n"
    )


def _claims(claims: Sequence[DecidedClaim]) -> str:
    rows = []
    for claim in claims:
        name, sign = _SIGNS[claim.verdict]
        holding = sum(each.verdict is ClaimVerdict.HOLDS for each in claim.conditions)
        numbers = "".join(
            f"<li><b>{_SIGNS[each.verdict][1]}</b> {escape(each.model)}, {escape(each.column)}: "
            f"{escape(condition(each))}</li>"
            for each in claim.conditions
        )
        rows.append(
            f'<tr><td class="verdict {name}">{sign} {claim.verdict}'
            f"<small>{holding} of {len(claim.conditions)} hold</small></td>"
            f"<td>{escape(claim.text)}<details><summary>{escape(claim.formula)}</summary>"
            f"<ul>{numbers}</ul></details></td>"
            f"<td>{claim.in_paper}</td><td class=muted>{escape(claim.place)}</td></tr>"
        )
    return (
        "<table class=claims><thead><tr><th>ours<th>claim<th>the paper's own numbers<th>place"
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        "<p class=muted>A claim holds where the 95 % interval of its inequality lies above the "
        "bound for every model and column it names, and does not hold where it lies below for one. "
        "The interval speaks of these checkpoints on other prompts, not of other trainings.</p>"
    )


def _table(table: ReportTable, out: Path) -> str:
    groups = [(name, len(list(each))) for name, each in groupby(c.group for c in table.columns)]
    top = "".join(f"<th colspan={count} class=group>{escape(name)}</th>" for name, count in groups)
    heads = "".join(
        f"<th{_first(table, i)}>{escape(column.label)}</th>"
        for i, column in enumerate(table.columns)
    )
    rows = []
    for model in table.models:
        rows.append(
            f"<tr class=model><th colspan={1 + len(table.columns)}>{escape(model)}</th></tr>"
        )
        for method, label in table.methods.items():
            cells = "".join(
                _cell(table.cell(model, method, column.key), _first(table, i), column, out)
                for i, column in enumerate(table.columns)
            )
            rows.append(f"<tr><th>{escape(label)}</th>{cells}</tr>")
    return (
        f"<table class=results><thead><tr><th></th>{top}</tr><tr><th></th>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _first(table: ReportTable, i: int) -> str:
    """Mark the first column under each heading, where a thin line stands."""
    return " class=first" if i and table.columns[i].group != table.columns[i - 1].group else ""


def _cell(cell: ReportedCell, first: str, column: Column, out: Path) -> str:
    if cell.status is CellStatus.MISSING:
        shown = "<span class=missing>-</span>"
    elif cell.status is CellStatus.INCOMPLETE:
        shown = "<span class=incomplete>incomplete</span>"
    else:
        address = escape(link(cell.origins[0], out), quote=True)
        shown = f'<a href="{address}">{percent(cell.value)}</a>{marks(cell)}'
    theirs = "" if cell.theirs is None else f"<small>({percent(cell.theirs)})</small>"
    about = escape("\n".join(_about(cell, column)), quote=True)
    return f'<td{first} title="{about}">{shown}{theirs}</td>'


def _about(cell: ReportedCell, column: Column) -> Iterator[str]:
    yield f"{column.group} {column.label}, {cell.method}: {cell.status}"
    if cell.reason:
        yield cell.reason
    if cell.interval is not None:
        low, high = percent(cell.interval.low), percent(cell.interval.high)
        repeats = f" x {cell.repeats} answers" if cell.repeats > 1 else ""
        yield f"95 % interval {low} to {high} ({cell.interval.method}), n {cell.n}{repeats}"
    if cell.difference is not None:
        inside = "inside" if cell.theirs_inside else "outside"
        yield f"{points(cell.difference)} from the paper, whose value lies {inside} our interval"
    if (test := cell.against_post) is not None:
        clear = "significant" if test.p_value < SIGNIFICANT else "not significant"
        p_value = f"p {test.p_value:.2g}"
        yield f"{points(test.difference)} from after SFT, {p_value}, {test.n} pairs: {clear}"
    for seed, value in cell.by_seed.items():
        yield f"seed {seed}: {percent(value)}"
    for origin in cell.origins:
        yield f"stage {origin.stage}, commit {(origin.commit or 'unknown')[:12]}"
        for manifest in origin.dirty:
            yield f"uncommitted changes: {manifest}"


def _figures(report: Report) -> Iterator[str]:
    for drawing in figures(report).values():
        # The title of a picture is its caption too.
        caption = drawing.partition("<title>")[2].partition("</title>")[0]
        yield f"<figure><figcaption>{caption}</figcaption>{drawing}</figure>"


def figures(report: Report) -> dict[str, str]:
    """Return every figure that there are data for as SVG, by name."""
    table = report.table
    drawn = {}
    for model in table.models:
        if (figure := recall_figure(table, model)) is not None:
            drawn[f"recall_{model}"] = figure
    if report.drift:
        drawn["drift"] = drift_figure(report.drift)
    for (model, task), maps in groupby(report.heat_maps, lambda each: (each.model, each.task)):
        drawn[f"heat_map_{model}_{task}"] = heat_map_figure(list(maps), table.methods)
    return drawn


def _sources(table: ReportTable, out: Path) -> str:
    rows: dict[str, None] = {}
    for cell in table.cells:
        for origin in cell.origins:
            address = escape(link(origin, out), quote=True)
            dirty = ", ".join(origin.dirty)
            rows[
                f"<tr><td>{escape(cell.model)}<td>{escape(cell.method)}<td>"
                f'{escape(origin.seed or "-")}<td><a href="{address}">{escape(origin.stage)}</a>'
                f"<td><code>{escape((origin.commit or '-')[:12])}</code>"
                f"<td>{escape(dirty and '† ' + dirty)}</tr>"
            ] = None
    if not rows:
        return "<p>Nothing was measured yet.</p>"
    return (
        "<table class=sources><thead><tr><th>model<th>method<th>seed<th>stage<th>commit"
        f"<th>uncommitted changes</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _list(title: str, items: Iterator[str] | Sequence[str]) -> str:
    listed = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<h2>{title}</h2><ul>{listed}</ul>" if listed else ""


def json_text(report: Report) -> str:
    """Return the whole report as JSON."""
    return json.dumps(codec.to_json(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
