"""Format a table as Markdown, CSV, LaTeX (booktabs) or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from itertools import groupby
from urllib.parse import quote

from amnesia_bench.markdown import code, escape, markdown_table
from amnesia_bench.records import codec
from amnesia_bench.records.report import (
    Origin,
    Report,
    ReportedCell,
    ReportTable,
    TableReport,
)
from amnesia_bench.reporting.paths import OUTSIDE
from amnesia_bench.reporting.wording import (
    format_condition,
    format_percent,
    format_provenance,
    format_reference,
    format_sample_sizes,
    format_uncertainty,
    format_value,
    legend,
)

_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"†": r"$^\dagger$", "*": "$^*$", "<": "$<$", ">": "$>$"}
)
_CSV_HEADS = (
    *("table", "model", "method", "column", "task", "metric", "context_tokens"),
    *("status", "reason", "value", "theirs", "difference", "low", "high", "interval_method"),
    *("n", "prompts", "repeats", "seeds", "against_post", "p_value", "pairs", "dirty"),
    *("stage", "path", "manifest_sha256"),
)


def table_markdown(table_report: TableReport, report: Report) -> str:
    """Return one table of a report as Markdown, with its claims, sources and notes."""
    table = table_report.table
    lines = [f"## {escape(table.title)}", "", *results_markdown(table)]
    lines += [f"- {escape(reason)}" for reason in incomplete(table)]
    lines += ["", "### Claims", ""]
    lines += _claims_markdown(table_report)
    for claim in table_report.claims:
        lines += ["", f"{escape(claim.text)} {code(claim.formula)}", ""]
        lines += [
            f"- {escape(condition.model)}, {escape(condition.column)}: {condition.verdict}. "
            + escape(format_condition(condition, claim.above))
            for condition in claim.conditions
        ]
    lines += ["", "### Sources", "", *_sources(table), ""]
    notes = (*table_report.notes, *report.notes)
    for title, items in (("Remarks on the paper's numbers", table.remarks), ("Notes", notes)):
        if items:
            lines += [f"### {title}", "", *(f"- {escape(item)}" for item in items), ""]
    return "\n".join([*lines, escape(format_provenance(report.made))]) + "\n"


def results_markdown(table: ReportTable) -> list[str]:
    """Return the lines of a table's values, with the sentences that explain them."""
    published = any(cell.theirs is not None for cell in table.cells)
    heads = ["model", "method", *(escape(f"{c.group} {c.label}".strip()) for c in table.columns)]
    rows = [
        [escape(model), escape(label)]
        + [
            f"{format_value(cell)} {format_reference(cell, published=published)}".rstrip()
            for cell in (table.cell(model, method, c.key) for c in table.columns)
        ]
        for model in table.models
        for method, label in table.methods.items()
    ]
    lines = [*markdown_table(heads, rows, left=2), "", legend(table), ""]
    if sizes := format_sample_sizes(table):
        lines += [f"Sample sizes: {escape(sizes)}.", ""]
    if uncertainty := format_uncertainty(table):
        lines += [escape(uncertainty), ""]
    return lines


def _claims_markdown(table_report: TableReport) -> list[str]:
    """Return the lines of a table of claims with their verdicts."""
    return markdown_table(
        ["claim", "our numbers", "the paper's numbers", "place"],
        [
            [escape(claim.text), f"**{claim.verdict}**", claim.in_paper, escape(claim.place)]
            for claim in table_report.claims
        ],
        left=4,
    )


def csv_text(table: ReportTable) -> str:
    """Return a table as CSV, one line per slot, with fractions at full precision."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_CSV_HEADS)
    columns = {column.key: column for column in table.columns}
    for cell in table.cells:
        column, interval, test = columns[cell.column], cell.interval, cell.against_post
        writer.writerow(
            [table.name, cell.model, cell.method, cell.column, column.task, column.metric]
            + [column.context_tokens, cell.status, cell.reason, cell.value, cell.theirs]
            + [cell.difference]
            + ([interval.low, interval.high, interval.method] if interval else [None] * 3)
            + [cell.n, cell.prompts, cell.repeats, " ".join(cell.by_seed)]
            + ([test.difference, test.p_value, test.n] if test else [None] * 3)
            + [" ".join(manifest for o in cell.origins for manifest in o.dirty)]
            + [" ".join(origin.stage for origin in cell.origins)]
            + [" ".join(origin.path for origin in cell.origins)]
            + [" ".join(o.manifest_sha256 for o in cell.origins if o.manifest_sha256)]
        )
    return file.getvalue()


def latex(table: ReportTable) -> str:
    """Return a table as a LaTeX `table*`, which needs the packages booktabs and graphicx."""
    groups = [(name, len(list(same))) for name, same in groupby(c.group for c in table.columns)]
    first = 3
    rules = []
    for _, count in groups:
        rules.append(rf"\cmidrule(lr){{{first}-{first + count - 1}}}")
        first += count
    top = [rf"\multicolumn{{{count}}}{{c}}{{{_tex(name)}}}" for name, count in groups]
    lines = [
        r"\begin{table*}",
        rf"\caption{{{_tex(table.title)}. {_tex(legend(table))}}}",
        r"\centering\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{ll{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(["Model", "Method", *top]) + r" \\",
        "".join(rules),
        " & ".join(["", "", *(_tex(column.label) for column in table.columns)]) + r" \\",
    ]
    for model in table.models:
        lines.append(r"\midrule")
        for i, (method, label) in enumerate(table.methods.items()):
            cells = [_tex_cell(table.cell(model, method, c.key)) for c in table.columns]
            lines.append(" & ".join([_tex(model) if i == 0 else "", _tex(label), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table*}"]) + "\n"


def incomplete(table: ReportTable) -> Iterator[str]:
    """Yield the reason of each incomplete cell."""
    for cell in table.cells:
        if cell.reason is not None:
            yield f"{cell.model}, {cell.method}, {cell.column}: {cell.reason}"


def address(origin: Origin) -> str | None:
    """Return the relative URL of the manifest, or of the cell file, from which a number comes.

    Return None if there is no path relative to the report's folder; the stage and the manifest hash
    then identify the file.
    """
    return None if origin.path.startswith(f"{OUTSIDE}/") else quote(origin.path)


def _sources(table: ReportTable) -> list[str]:
    rows: dict[tuple[str, ...], None] = {}
    for cell in table.cells:
        for origin in cell.origins:
            link = address(origin)
            stage = escape(origin.stage)
            row = (
                *(escape(cell.model), escape(cell.method), escape(origin.seed or "-")),
                stage if link is None else f"[{stage}]({link})",
                *((origin.manifest_sha256 or "-")[:12], escape(origin.commit or "-")),
            )
            rows[(*row, escape(", ".join(origin.dirty)) or "no")] = None
    if not rows:
        return ["No cell is measured yet."]
    heads = ["model", "method", "seed", "stage", "manifest sha256", "commit"]
    heads.append("uncommitted changes")
    return markdown_table(heads, [list(row) for row in rows], left=len(heads))


def json_text(record: object, **more: object) -> str:
    """Return a record as JSON; the records in `more` are added as fields with these names."""
    data = codec.to_json(record)
    for name, value in more.items():
        data[name] = codec.to_json(value)
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _tex(text: str) -> str:
    return text.translate(_LATEX)


def _tex_cell(cell: ReportedCell) -> str:
    published = "" if cell.theirs is None else rf" {{\scriptsize({format_percent(cell.theirs)})}}"
    return _tex(format_value(cell)) + published
