"""Format percentages, points, p-values and sample sizes identically for every output format."""

from __future__ import annotations

from amnesia_bench.records.report import (
    CellStatus,
    ClaimVerdict,
    Condition,
    PairedTest,
    ReportedCell,
    ReportProvenance,
    ReportTable,
    TableReport,
)

SIGNIFICANT = 0.05


def legend(table: ReportTable) -> str:
    """Return the sentences that explain the values and marks in a table."""
    published = any(cell.theirs is not None for cell in table.cells)
    reference = (
        "In parentheses: the paper's value."
        if published
        else "In brackets: the 95 % interval. The paper's values, for other models, are not shown."
    )
    return (
        f"Values are in per cent. {reference} - means not measured; * means different from the row "
        "after the same SFT on the same prompts (exact paired test, p < 0.05); † means that the "
        "code had uncommitted changes."
    )


def format_sample_sizes(table: ReportTable) -> str:
    """Return how many prompts, answers and seeds a table's values are based on, as text."""
    groups: dict[str, list[str]] = {}
    for group in dict.fromkeys(column.group for column in table.columns):
        keys = {column.key for column in table.columns if column.group == group}
        cells = [cell for cell in table.cells if cell.column in keys and cell.value is not None]
        sizes = sorted({format_sample_size(c.n, c.prompts, c.repeats) for c in cells})
        if sizes:
            groups.setdefault(" or ".join(sizes), []).append(group)
    parts = [f"{', '.join(names)}: {sizes}" for sizes, names in groups.items()]
    seeds = sorted({seed for cell in table.cells for seed in cell.by_seed}, key=_by_number)
    if seeds:
        parts.append(f"values, intervals and tests are pooled over seeds {', '.join(seeds)}")
    return "; ".join(parts)


def _by_number(seed: str) -> tuple[int, str]:
    return (int(seed), "") if seed.isdecimal() else (-1, seed)


def format_sample_size(n: int, prompts: int, repeats: int = 1) -> str:
    """Format n, the number of distinct prompts if it differs, and the number of answers to each."""
    shared = f" ({prompts} prompts)" if prompts != n else ""
    return f"n = {n}{shared}" + (f" x {repeats} answers" if repeats > 1 else "")


def format_percent(value: float | None) -> str:
    """Format a fraction in per cent with one decimal; return "-" for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def format_points(value: float | None) -> str:
    """Format a difference in percentage points with its sign; return "-" for None."""
    return "-" if value is None else f"{100 * value:+.1f}"


def format_value(cell: ReportedCell) -> str:
    """Return a cell's value with its marks; "incomplete" or "-" for a cell without a value."""
    if cell.status is CellStatus.INCOMPLETE:
        return "incomplete"
    return format_percent(cell.value) + format_marks(cell)


def format_marks(cell: ReportedCell) -> str:
    """Return those of the marks `*` and `†` that apply to a cell; `legend` explains them."""
    test = cell.against_post
    starred = test is not None and test.p_value < SIGNIFICANT
    return ("*" if starred else "") + ("†" if cell.dirty else "")


def format_reference(cell: ReportedCell, *, published: bool) -> str:
    """Return the paper's value in parentheses or, if the table has none, the interval in brackets.

    `published` is true if the table has values of the paper.
    """
    if published:
        return "" if cell.theirs is None else f"({format_percent(cell.theirs)})"
    if cell.interval is None:
        return ""
    return f"[{format_percent(cell.interval.low)}, {format_percent(cell.interval.high)}]"


def format_test(test: PairedTest) -> str:
    """Format the result of a paired test as one line."""
    clear = "significant" if test.p_value < SIGNIFICANT else "not significant"
    pairs = format_sample_size(test.n, test.prompts).removeprefix("n = ")
    difference = format_points(test.difference)
    return f"{difference} points from the SFT row, p = {test.p_value:.2g}, {pairs} pairs: {clear}"


def format_estimate(condition: Condition, above: float) -> str:
    """Format an estimate, its interval and how many seeds are above the bound `above`.

    Return an empty text if there is no estimate.
    """
    if condition.estimate is None or condition.low is None or condition.high is None:
        return ""
    interval = f"({100 * condition.low:.1f} to {100 * condition.high:.1f})"
    seeds = [value > above for value in condition.by_seed.values()]
    counted = f", {sum(seeds)} of {len(seeds)} seeds" if len(seeds) > 1 else ""
    return f"{format_points(condition.estimate)} {interval}{counted}"


def format_condition(condition: Condition, above: float) -> str:
    """Format a condition's numbers as one line; `above` is the bound of its claim."""
    if condition.missing:
        measured = f"not measured: {', '.join(condition.missing)}"
    elif measured := format_estimate(condition, above):
        how = "paired" if condition.paired else "unpaired"
        measured += f", {format_sample_size(condition.n, condition.prompts)}, {how}"
    else:
        measured = "no standard error"
    if condition.by_seed:
        seeds = sorted(condition.by_seed, key=_by_number)
        measured += "; by seed " + ", ".join(
            f"{s} {format_points(condition.by_seed[s])}" for s in seeds
        )
    published = "" if condition.theirs is None else f"; paper {format_points(condition.theirs)}"
    return f"{measured}{published}"


def summary(report: TableReport) -> str:
    """Return one line that counts a table's cells by status and its claims by verdict."""
    cells = report.table.cells
    count = {status: sum(c.status is status for c in cells) for status in CellStatus}
    verdicts = [claim.verdict for claim in report.claims]
    measured = (
        f"{count[CellStatus.DONE]} of {len(cells)} cells measured, "
        f"{count[CellStatus.INCOMPLETE]} incomplete, {count[CellStatus.MISSING]} missing."
    )
    if not verdicts:
        return measured
    return (
        f"{measured} Claims: {verdicts.count(ClaimVerdict.HOLDS)} hold, "
        f"{verdicts.count(ClaimVerdict.DOES_NOT_HOLD)} do not hold, "
        f"{verdicts.count(ClaimVerdict.NOT_SHOWN)} are not shown either way."
    )


def format_provenance(made: ReportProvenance) -> str:
    """Return one line with the version and commit of the code that wrote a report, and the date."""
    changed = " with uncommitted changes" if made.dirty else ""
    commit = made.commit or "unknown commit"
    return f"amnesia_bench {made.tool_version}, {commit}{changed}, {made.created}"
