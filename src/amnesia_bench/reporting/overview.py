"""The whole report as one Markdown file: every table and verdict, cost and version, no sources."""

from __future__ import annotations

from amnesia_bench.markdown import escape, markdown_table
from amnesia_bench.records.report import Report, TableReport
from amnesia_bench.reporting.text_formats import incomplete, results_markdown
from amnesia_bench.reporting.wording import (
    format_cost,
    format_estimate,
    format_provenance,
    how_claims_are_decided,
    summary,
)


def overview_markdown(report: Report) -> str:
    """Return all tables of a report with their claims as Markdown.

    The sources of the numbers are in the files of the single tables.
    """
    lines = ["# Results", "", escape(format_provenance(report.made)), ""]
    lines += [escape(format_cost(report.cost)), "", how_claims_are_decided(report.tables), ""]
    for table_report in report.tables:
        lines += _section(table_report)
    if report.notes:
        lines += ["## Notes", "", *(f"- {escape(note)}" for note in report.notes), ""]
    return "\n".join(lines)


def _section(report: TableReport) -> list[str]:
    table = report.table
    lines = [f"## {escape(table.title)}", "", escape(summary(report)), ""]
    lines += [*results_markdown(table), *(f"- {escape(text)}" for text in incomplete(table)), ""]
    rows = [
        [
            escape(claim.text),
            f"**{claim.verdict}**",
            escape(
                "; ".join(
                    f"{condition.column}: {format_estimate(condition, claim.above) or '-'}"
                    for condition in claim.conditions
                )
            ),
            claim.in_paper,
        ]
        for claim in report.claims
    ]
    if rows:
        heads = ["claim", "our numbers", "points", "the paper's numbers"]
        lines += [*markdown_table(heads, rows, left=4), ""]
    return [*lines, *(f"- {escape(note)}" for note in report.notes), ""]
