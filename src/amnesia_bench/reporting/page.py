"""Write the report as a single HTML page with inline SVG, without scripts or external resources."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from amnesia_bench.records.report import ClaimVerdict, DecidedClaim, Report, TableReport
from amnesia_bench.reporting.cause_texts import causes_html
from amnesia_bench.reporting.figures import drift_figures, figures_on, heat_maps_on
from amnesia_bench.reporting.page_tables import Anchors, anchors_of, results, sources
from amnesia_bench.reporting.text_formats import incomplete
from amnesia_bench.reporting.wording import (
    format_condition,
    format_cost,
    format_estimate,
    format_provenance,
    format_sample_sizes,
    format_uncertainty,
    how_claims_are_decided,
    legend,
    summary,
)

# For each verdict, its CSS class (colour) and a sign, which also works in print and for
# colour-blind readers.
_SIGNS = {
    ClaimVerdict.HOLDS: ("yes", "✓"),
    ClaimVerdict.DOES_NOT_HOLD: ("no", "✗"),
    ClaimVerdict.NOT_SHOWN: ("open", "?"),
    ClaimVerdict.NOT_ENOUGH_DATA: ("open", "…"),
}
_STYLE = Path(__file__).with_name("page.css")


def page(report: Report) -> str:
    """Return the HTML page; its links are relative to the report's folder."""
    tables, anchors = report.tables, anchors_of(report)
    title = tables[0].table.title if len(tables) == 1 else f"Report on {len(tables)} tables"
    body = [
        f"<h1>{escape(title)}</h1>",
        _contents(tables),
        "<h2>Claims</h2>",
        _claims(tables),
        *(_section(table_report, anchors) for table_report in tables),
        *_figure_section("Drift of the weights", drift_figures(report)),
        "" if report.causes is None else causes_html(report.causes, _SIGNS),
        "<h2>Sources</h2>",
        sources([table_report.table for table_report in tables], anchors),
        _list("Notes", report.notes),
        f"<footer class=muted>{escape(format_provenance(report.made))}. "
        f"{escape(format_cost(report.cost))}"
        "<details><summary>command</summary>"
        f"<code>{escape(' '.join(report.made.command))}</code></details></footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Without this link, browsers request favicon.ico.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n"
        f"{_STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body>\n</html>\n"
    )


def _contents(tables: Sequence[TableReport]) -> str:
    if len(tables) == 1:
        return f"<p class=muted>{escape(summary(tables[0]))}</p>"
    items = "".join(
        f"<li><a href=#{escape(report.table.name)}>{escape(report.table.title)}</a> "
        f"<span class=muted>{escape(summary(report))}</span></li>"
        for report in tables
    )
    return f"<nav><ul>{items}</ul></nav>"


def _claims(tables: Sequence[TableReport]) -> str:
    bodies = []
    for report in tables:
        rows = "".join(_claim(claim) for claim in report.claims)
        head = f"<tr class=model><th colspan=5>{escape(report.table.title)}</th></tr>"
        bodies.append(f"<tbody>{head if len(tables) > 1 else ''}{rows}</tbody>" if rows else "")
    return (
        "<table class=claims><thead><tr><th>our numbers<th>points<th>claim"
        f"<th>the paper's numbers<th>place</tr></thead>{''.join(bodies)}</table>"
        f"<p class=muted>{escape(how_claims_are_decided(tables))}</p>"
    )


def _claim(claim: DecidedClaim) -> str:
    name, sign = _SIGNS[claim.verdict]
    estimates = "".join(
        f"<div>{_SIGNS[condition.verdict][1]} "
        f"{escape(format_estimate(condition, claim.above) or '-')}</div>"
        for condition in claim.conditions
    )
    numbers = "".join(
        f"<li><b>{_SIGNS[condition.verdict][1]}</b> {escape(condition.model)}, "
        f"{escape(condition.column)}: {escape(format_condition(condition, claim.above))}</li>"
        for condition in claim.conditions
    )
    return (
        f'<tr><td class="verdict {name}">{sign} {claim.verdict}</td>'
        f"<td class=estimates>{estimates}</td>"
        f"<td>{escape(claim.text)}<details><summary>{escape(claim.formula)}</summary>"
        f"<ul>{numbers}</ul></details></td>"
        f"<td>{claim.in_paper}</td><td class=muted>{escape(claim.place)}</td></tr>"
    )


def _section(report: TableReport, anchors: Anchors) -> str:
    table = report.table
    maps = "".join(_figure(drawing) for drawing in heat_maps_on(report).values())
    parts = [
        f"<section id={escape(table.name)}><h2>{escape(table.title)}</h2>",
        results(table, anchors),
        f"<p class=muted>{escape(legend(table))} {escape(format_sample_sizes(table))} "
        f"{escape(format_uncertainty(table))}</p>",
        *map(_figure, figures_on(report).values()),
        f"<details><summary>recall by depth and length</summary>{maps}</details>" if maps else "",
        _list("Incomplete", incomplete(table)),
        _list("Remarks on the paper's numbers", table.remarks),
        _list("Notes on this table", report.notes),
        "</section>",
    ]
    return "\n".join(filter(None, parts))


def _figure_section(title: str, drawings: dict[str, str]) -> Iterator[str]:
    if drawings:
        yield f"<h2>{title}</h2>"
        yield from map(_figure, drawings.values())


def _figure(drawing: str) -> str:
    # The SVG title of a picture is also used as its caption.
    caption = drawing.partition("<title>")[2].partition("</title>")[0]
    return f"<figure><figcaption>{caption}</figcaption>{drawing}</figure>"


def _list(title: str, items: Iterable[str]) -> str:
    lines = "".join(f"<li>{escape(item)}</li>" for item in items)
    return f"<h3>{title}</h3><ul>{lines}</ul>" if lines else ""
