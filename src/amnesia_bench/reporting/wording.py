"""Numbers as every format writes them: per cent, points, p-values."""

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
    """Explain the marks of a table, and what stands behind its numbers."""
    published = any(cell.theirs is not None for cell in table.cells)
    beside = (
        "In parentheses: the paper's."
        if published
        else "In brackets: the 95 % interval. The paper's numbers are of other models: not shown."
    )
    return (
        f"Values in per cent. {beside} - was not measured; * differs from the row after the same "
        "SFT on the same prompts (exact paired test, p < 0.05); † was made by code with "
        "uncommitted changes."
    )


def format_sample_sizes(table: ReportTable) -> str:
    """Say over how many prompts, answers and seeds the numbers of a table are."""
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
        parts.append(f"seeds {', '.join(seeds)}: values, intervals and tests are pooled")
    return "; ".join(parts)


def _by_number(seed: str) -> tuple[int, str]:
    return (int(seed), "") if seed.isdecimal() else (-1, seed)


def format_sample_size(n: int, prompts: int, repeats: int = 1) -> str:
    """Return n, and how many prompts and answers to each are behind it."""
    shared = f" ({prompts} prompts)" if prompts != n else ""
    return f"n {n}{shared}" + (f" x {repeats} answers" if repeats > 1 else "")


def format_percent(value: float | None) -> str:
    """Return a fraction in per cent, to a tenth; "-" where there is none."""
    return "-" if value is None else f"{100 * value:.1f}"


def format_points(value: float | None) -> str:
    """Return a difference in points, with its sign; "-" where there is none."""
    return "-" if value is None else f"{100 * value:+.1f}"


def format_value(cell: ReportedCell) -> str:
    """Return our value with its marks; an incomplete cell says so, a missing one is "-"."""
    if cell.status is CellStatus.INCOMPLETE:
        return "incomplete"
    return format_percent(cell.value) + format_marks(cell)


def format_marks(cell: ReportedCell) -> str:
    """Return `*` and `†` as LEGEND explains them."""
    test = cell.against_post
    starred = test is not None and test.p_value < SIGNIFICANT
    return ("*" if starred else "") + ("†" if cell.dirty else "")


def format_reference(cell: ReportedCell, *, published: bool) -> str:
    """Return what stands beside our value: the paper's; in a table without those, the interval."""
    if published:
        return "" if cell.theirs is None else f"({format_percent(cell.theirs)})"
    if cell.interval is None:
        return ""
    return f"[{format_percent(cell.interval.low)}, {format_percent(cell.interval.high)}]"


def format_test(test: PairedTest) -> str:
    """Return a paired test in one line."""
    clear = "significant" if test.p_value < SIGNIFICANT else "not significant"
    pairs = format_sample_size(test.n, test.prompts).removeprefix("n ")
    difference = format_points(test.difference)
    return f"{difference} from after SFT, p {test.p_value:.2g}, {pairs} pairs: {clear}"


def format_estimate(found: Condition, above: float) -> str:
    """Return an estimate, its interval, and in how many seeds it is `above`; empty without one."""
    if found.estimate is None or found.low is None or found.high is None:
        return ""
    interval = f"({100 * found.low:.1f} to {100 * found.high:.1f})"
    seeds = [value > above for value in found.by_seed.values()]
    counted = f", {sum(seeds)} of {len(seeds)} seeds" if len(seeds) > 1 else ""
    return f"{format_points(found.estimate)} {interval}{counted}"


def format_condition(found: Condition, above: float) -> str:
    """Return a condition's numbers in one line; `above` is the bound of its claim."""
    if found.missing:
        measured = f"not measured: {', '.join(found.missing)}"
    elif measured := format_estimate(found, above):
        how = "paired" if found.paired else "unpaired"
        measured += f", {format_sample_size(found.n, found.prompts)}, {how}"
    else:
        measured = "no error is known"
    if found.by_seed:
        seeds = sorted(found.by_seed, key=_by_number)
        measured += "; by seed " + ", ".join(
            f"{s} {format_points(found.by_seed[s])}" for s in seeds
        )
    theirs = "" if found.theirs is None else f"; paper {format_points(found.theirs)}"
    return f"{measured}{theirs}"


def summary(report: TableReport) -> str:
    """Say how much was measured, and how many claims hold."""
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
        f"{verdicts.count(ClaimVerdict.DOES_NOT_HOLD)} do not, "
        f"{verdicts.count(ClaimVerdict.NOT_SHOWN)} are not shown either way."
    )


def format_provenance(made: ReportProvenance) -> str:
    """Say which code wrote the report, and when."""
    changed = " with uncommitted changes" if made.dirty else ""
    commit = made.commit or "unknown commit"
    return f"amnesia_bench {made.tool_version}, {commit}{changed}, {made.created}"
