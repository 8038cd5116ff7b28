"""Format the report of a check for humans: table rows, notes, and a Markdown summary."""

from __future__ import annotations

from collections.abc import Sequence

from amnesia_bench.markdown import block, code, escape, markdown_table
from amnesia_bench.records.recall import CheckedPromptSet, CheckReport, CheckVerdict, HeatMap

HEADLINES = {
    CheckVerdict.REGRESSION: "recall regression",
    CheckVerdict.NO_REGRESSION: "no recall regression",
    CheckVerdict.UNDECIDED: "undecided",
}


def headline(report: CheckReport) -> str:
    """Return one line with the verdict and the numbers of answers that it required and saved."""
    saved = report.generations_planned - report.generations
    share = saved / report.generations_planned
    return (
        f"{HEADLINES[report.verdict]}: {report.generations:,} of {report.generations_planned:,} "
        f"answers were needed, {saved:,} ({100 * share:.0f} %) saved"
    )


def columns(report: CheckReport) -> list[str]:
    """Return the column headings for the table rows that `row` returns."""
    return ["task", "length", *report.checkpoints, "n", "drop", "95 % interval", "p", "verdict"]


def row(checked: CheckedPromptSet, report: CheckReport) -> list[str]:
    """Return the table row of one prompt set: recall in per cent, drop in percentage points."""
    drop = next((c for c in checked.comparisons if (c.first, c.second) == ("pre", "post")), None)
    recalls = [
        f"{100 * recall.mean:.1f}" if (recall := checked.recall.get(role)) else "-"
        for role in report.checkpoints
    ]
    if drop is None:
        return [
            checked.task,
            str(checked.context_tokens),
            *recalls,
            "0",
            "-",
            "-",
            "-",
            "not run",
        ]
    return [
        checked.task,
        str(checked.context_tokens),
        *recalls,
        str(checked.n),
        f"{100 * drop.difference:.1f}",
        f"{100 * drop.interval.low:.1f} to {100 * drop.interval.high:.1f}",
        f"{drop.p_value:.2g}",
        HEADLINES[checked.verdict],
    ]


def notes(report: CheckReport) -> list[str]:
    """Return the notes below the table: decision rule, effect of the repair, and warnings."""
    rule = report.rule
    lines = [
        f"Rule: a drop above {100 * rule.margin:g} points at an error rate of "
        f"{100 * rule.error_rate:g} % over all looks and prompt sets; all clear once a drop of "
        f"{100 * rule.excluded_drop:g} points is excluded. Interval (Tango) and p (exact "
        "sign-flip test) are computed from all answers in the table, as if looked at once."
    ]
    for checked in report.cells:
        for pair in checked.comparisons:
            if (pair.first, pair.second) == ("restored", "post"):
                lines.append(
                    f"{checked.task} at {checked.context_tokens}: restored is "
                    f"{100 * pair.difference:+.1f} points from post ({100 * pair.interval.low:.1f} "
                    f"to {100 * pair.interval.high:.1f}, p {pair.p_value:.2g})."
                )
    return [*lines, *(f"Warning: {warning}." for warning in report.warnings)]


def check_markdown(report: CheckReport) -> str:
    """Return the report as Markdown for a pull request comment."""
    lines = [f"### Long-range recall: {headline(report)}", ""]
    lines += [f"- {role}: {code(str(folder))}" for role, folder in report.checkpoints.items()]
    lines += [
        "",
        *markdown_table(
            columns(report), [row(checked, report) for checked in report.cells], left=2
        ),
    ]
    lines += [""] + [f"{escape(note)}\n" for note in notes(report)]
    if report.advice is not None:
        lines += ["Put the routing of the base back:", "", *block(report.advice, "sh"), ""]
    lengths = [str(length) for length in report.heat_maps[0].context_tokens]
    if lengths:
        lines += [
            "<details><summary>Recall by depth and length</summary>",
            "",
            f"In per cent, {' > '.join(report.checkpoints)} (n).",
            "",
            *markdown_table(["depth", *lengths], heat_rows(report.heat_maps), left=1),
            "",
            "</details>",
        ]
    return "\n".join(lines) + "\n"


def heat_rows(maps: Sequence[HeatMap]) -> list[list[str]]:
    """Return one table row per depth range, with one column per context length.

    The first column is the depth range. The others, such as `92 > 40 (25)`, contain the recall in
    each map, in per cent and in the order of `maps`, and the number of prompts in parentheses.

    Raises:
        ValueError: the maps have different context lengths or depth ranges.
    """
    first = maps[0]
    if any(
        (other.depth_edges, other.context_tokens) != (first.depth_edges, first.context_tokens)
        for other in maps
    ):
        raise ValueError("heat maps of different lengths or depths")
    rows = []
    for row, (low, high) in enumerate(zip(first.depth_edges, first.depth_edges[1:], strict=False)):
        cells = []
        for column in range(len(first.context_tokens)):
            recalls = [_percent(heat.correct[row][column], heat.n[row][column]) for heat in maps]
            counts = {heat.n[row][column] for heat in maps}
            cells.append(f"{' > '.join(recalls)} ({'/'.join(map(str, sorted(counts)))})")
        rows.append([f"{low:.0f}-{high:.0f} %", *cells])
    return rows


def _percent(correct: int, n: int) -> str:
    return f"{100 * correct / n:.0f}" if n else "-"
