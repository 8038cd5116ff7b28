"""Numbers as every format writes them: per cent, points, p-values."""

from __future__ import annotations

from amnesia_bench.records.report import (
    CellStatus,
    ClaimVerdict,
    Condition,
    Report,
    ReportedCell,
)

SIGNIFICANT = 0.05
LEGEND = (
    "Values in per cent. Behind ours, in parentheses: the paper's. - was not measured; "
    "* differs from the row after SFT on the same prompts (exact paired test, p < 0.05); "
    "† was made by code with uncommitted changes."
)


def percent(value: float | None) -> str:
    """Return a fraction in per cent, to a tenth; "-" where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """Return a difference in points, with its sign; "-" where there is none."""
    return "-" if value is None else f"{100 * value:+.1f}"


def ours(cell: ReportedCell) -> str:
    """Return our value with its marks; an incomplete cell says so, a missing one is "-"."""
    if cell.status is CellStatus.INCOMPLETE:
        return "incomplete"
    return percent(cell.value) + marks(cell)


def marks(cell: ReportedCell) -> str:
    """Return `*` and `†` as LEGEND explains them."""
    test = cell.against_post
    starred = test is not None and test.p_value < SIGNIFICANT
    return ("*" if starred else "") + ("†" if cell.dirty else "")


def both(cell: ReportedCell) -> str:
    """Return our value and the paper's."""
    return ours(cell) if cell.theirs is None else f"{ours(cell)} ({percent(cell.theirs)})"


def condition(found: Condition) -> str:
    """Return a condition's numbers in one line."""
    if found.missing:
        measured = f"not measured: {', '.join(found.missing)}"
    elif found.estimate is None or found.low is None or found.high is None:
        measured = "no error is known"
    else:
        how = "paired" if found.paired else "unpaired"
        interval = f"{100 * found.low:.1f} to {100 * found.high:.1f}"
        measured = f"{points(found.estimate)} ({interval}, n {found.n}, {how})"
    theirs = "" if found.theirs is None else f"; paper {points(found.theirs)}"
    return f"{measured}{theirs}"


def summary(report: Report) -> str:
    """Say how much was measured, and how many claims hold."""
    cells = report.table.cells
    count = {status: sum(c.status is status for c in cells) for status in CellStatus}
    verdicts = [claim.verdict for claim in report.claims]
    return (
        f"{count[CellStatus.DONE]} of {len(cells)} cells measured, "
        f"{count[CellStatus.INCOMPLETE]} incomplete, {count[CellStatus.MISSING]} missing. "
        f"Claims: {verdicts.count(ClaimVerdict.HOLDS)} hold, "
        f"{verdicts.count(ClaimVerdict.DOES_NOT_HOLD)} do not, "
        f"{verdicts.count(ClaimVerdict.NOT_SHOWN)} are not shown either way."
    )
