"""Format a comparison for humans: table rows, notes, and a Markdown summary."""

from __future__ import annotations

from amnesia_bench.markdown import code, escape, markdown_table
from amnesia_bench.printable import counted
from amnesia_bench.records.comparison import Change, ComparisonReport, MetricComparison

COLUMNS = (
    "task",
    "metric",
    "A",
    "B",
    "B - A",
    "95 % interval",
    "p",
    "p of a loss (Holm)",
    "samples",
    "tied",
    "detectable",
    "B is",
)
LEFT_COLUMNS = 2
_CHANGES = {Change.WORSE: "worse", Change.BETTER: "better", Change.NOT_SHOWN: "not shown to differ"}
_TESTS = {
    "mcnemar_exact": "McNemar's exact test",
    "sign_flip_exact": "exact sign-flip test",
    "sign_flip_drawn": "sign-flip test with 100,000 random sign patterns",
}
_INTERVALS = {"tango": "Tango's score interval", "cluster_bootstrap": "bootstrap over samples"}


def comparison_headline(report: ComparisonReport) -> str:
    """Return the verdict in one line."""
    worse = [row for row in report.rows if row.change is Change.WORSE]
    rows = counted(len(report.rows), "row")
    if worse:
        return f"B is worse than A in {len(worse)} of {rows}"
    return f"no loss shown in {rows}"


def comparison_row(row: MetricComparison) -> list[str]:
    """Return the table row of one metric; scores from 0 to 1 are shown in per cent."""
    scale = 100.0 if min(row.a, row.b) >= 0 and max(row.a, row.b) <= 1 else 1.0
    scorer = "" if row.scorer in ("none", row.metric) else f" ({row.scorer})"
    lower = "" if row.higher_is_better else ", lower is better"
    smallest = row.smallest_detectable
    return [
        row.task,
        f"{row.metric}{scorer}{lower}",
        f"{scale * row.a:.1f}",
        f"{scale * row.b:.1f}",
        f"{scale * row.difference:+.1f}",
        f"{scale * row.interval.low:+.1f} to {scale * row.interval.high:+.1f}",
        f"{row.p_value:.2g}",
        f"{row.worse_p_value:.2g}",
        f"{row.n:,}",
        f"{row.tied:,}",
        "none" if smallest is None else f"{scale * smallest:.1f}",
        _CHANGES[row.change],
    ]


def comparison_notes(report: ComparisonReport) -> list[str]:
    """Return the notes below the table: the rule, the methods, and what was not compared."""
    tests = ", ".join(dict.fromkeys(_TESTS[row.method] for row in report.rows))
    intervals = ", ".join(dict.fromkeys(_INTERVALS[row.interval.method] for row in report.rows))
    lines = [
        f"Rule: B is worse in a row if the one-sided p-value of a loss, by Holm adjusted for all "
        f"rows, is at most {100 * report.error_rate:g} %. p: two-sided, {tests}. Interval: "
        f"{intervals}. Detectable: the smallest true loss that would have been shown with "
        f"{100 * report.power:g} % probability."
    ]
    if any(row.tied == row.n for row in report.rows):
        lines.append("Rows in which every sample is tied cannot show a difference.")
    for name, left_out in (("A", report.only_in_a), ("B", report.only_in_b)):
        lines += [f"Only in {name}: {line}." for line in left_out]
    lines += [f"Not compared: {line}." for line in report.skipped]
    return [*lines, *(f"Warning: {warning}." for warning in report.warnings)]


def comparison_markdown(report: ComparisonReport) -> str:
    """Return the report as Markdown for a pull request comment."""
    lines = [f"### Comparison: {comparison_headline(report)}", ""]
    for name, files in (("A", report.a), ("B", report.b)):
        lines += [f"- {name}: {code(file)}" for file in files]
    rows = [[escape(cell) for cell in comparison_row(row)] for row in report.rows]
    lines += ["", *markdown_table(COLUMNS, rows, left=LEFT_COLUMNS), ""]
    lines += [f"{escape(note)}\n" for note in comparison_notes(report)]
    return "\n".join(lines)
