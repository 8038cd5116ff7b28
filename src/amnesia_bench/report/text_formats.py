"""The table as Markdown, CSV and LaTeX (booktabs)."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from amnesia_bench.records.report import (
    Origin,
    Report,
    ReportedCell,
    ReportTable,
)
from amnesia_bench.report.wording import LEGEND, both, condition, ours, percent

_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"†": r"$^\dagger$", "*": "$^*$", "<": "$<$", ">": "$>$"}
)
_CSV_HEADS = (
    *("table", "model", "method", "column", "task", "metric", "context_tokens"),
    *("status", "reason", "value", "theirs", "difference", "low", "high", "interval_method"),
    *("n", "repeats", "against_post", "p_value", "pairs", "dirty", "cell", "manifest"),
)


def markdown(report: Report, out: Path) -> str:
    """Return the report as Markdown; links are relative to the folder `out`."""
    table = report.table
    heads = ["model", "method", *(f"{c.group} {c.label}".strip() for c in table.columns)]
    rows = [
        [model, label, *(both(table.cell(model, method, c.key)) for c in table.columns)]
        for model in table.models
        for method, label in table.methods.items()
    ]
    lines = [f"## {table.title}", "", *_markdown_table(heads, rows, left=2), "", LEGEND, ""]
    lines += [f"- {reason}" for reason in incomplete(table)]
    lines += ["", "### Claims", ""]
    lines += _markdown_table(
        ["claim", "ours", "the paper's own numbers", "place"],
        [[c.text, f"**{c.verdict}**", c.in_paper, c.place] for c in report.claims],
        left=4,
    )
    for claim in report.claims:
        lines += ["", f"{claim.text} `{claim.formula}`", ""]
        lines += [
            f"- {each.model}, {each.column}: {each.verdict}. {condition(each)}"
            for each in claim.conditions
        ]
    lines += ["", "### Sources", "", *_sources(table, out), ""]
    for title, said in (("Of the paper's numbers", table.remarks), ("Notes", report.notes)):
        if said:
            lines += [f"### {title}", "", *(f"- {each}" for each in said), ""]
    return "\n".join([*lines, made_by(report)]) + "\n"


def csv_text(report: Report) -> str:
    """Return one line per place in the table, fractions at full precision."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_CSV_HEADS)
    columns = {column.key: column for column in report.table.columns}
    for cell in report.table.cells:
        column, interval, test = columns[cell.column], cell.interval, cell.against_post
        writer.writerow(
            [report.table.name, cell.model, cell.method, cell.column, column.task, column.metric]
            + [column.context_tokens, cell.status, cell.reason, cell.value, cell.theirs]
            + [cell.difference]
            + ([interval.low, interval.high, interval.method] if interval else [None] * 3)
            + [cell.n, cell.repeats]
            + ([test.difference, test.p_value, test.n] if test else [None] * 3)
            + [" ".join(manifest for o in cell.origins for manifest in o.dirty)]
            + [" ".join(o.cell for o in cell.origins)]
            + [" ".join(o.manifest for o in cell.origins if o.manifest)]
        )
    return file.getvalue()


def latex(table: ReportTable) -> str:
    """Return a `table*` that needs the packages booktabs and graphicx."""
    groups = [(name, len(list(each))) for name, each in groupby(c.group for c in table.columns)]
    first = 3
    rules = []
    for _, count in groups:
        rules.append(rf"\cmidrule(lr){{{first}-{first + count - 1}}}")
        first += count
    top = [rf"\multicolumn{{{count}}}{{c}}{{{_tex(name)}}}" for name, count in groups]
    lines = [
        r"\begin{table*}",
        rf"\caption{{{_tex(table.title)}. {_tex(LEGEND)}}}",
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
    """Say of each incomplete cell why it is."""
    for cell in table.cells:
        if cell.reason is not None:
            yield f"{cell.model}, {cell.method}, {cell.column}: {cell.reason}"


def made_by(report: Report) -> str:
    """Say which code wrote the report, and when."""
    commit = report.commit or "unknown commit"
    changed = " with uncommitted changes" if report.dirty else ""
    return f"amnesia_bench {report.tool_version}, {commit}{changed}, {report.created}"


def link(origin: Origin, out: Path) -> str:
    """Return the address of what vouches for a number: its manifest, else its cell."""
    return quote(Path(os.path.relpath(origin.manifest or origin.cell, out)).as_posix())


def _sources(table: ReportTable, out: Path) -> list[str]:
    rows: dict[tuple[str, ...], None] = {}
    for cell in table.cells:
        for origin in cell.origins:
            stage = f"[{origin.stage}]({link(origin, out)})"
            row = (cell.model, cell.method, origin.seed or "-", stage, origin.commit or "-")
            rows[(*row, ", ".join(origin.dirty) or "no")] = None
    if not rows:
        return ["Nothing was measured yet."]
    heads = ["model", "method", "seed", "stage", "commit", "uncommitted changes"]
    return _markdown_table(heads, [list(row) for row in rows], left=len(heads))


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    rule = ["---" if i < left else "--:" for i in range(len(heads))]
    safe = [[cell.replace("|", r"\|") for cell in row] for row in (heads, rule, *rows)]
    return [f"| {' | '.join(row)} |" for row in safe]


def _tex(text: str) -> str:
    return text.translate(_LATEX)


def _tex_cell(cell: ReportedCell) -> str:
    theirs = "" if cell.theirs is None else rf" {{\scriptsize({percent(cell.theirs)})}}"
    return _tex(ours(cell)) + theirs
