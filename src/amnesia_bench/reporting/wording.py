"""Format percentages, points, p-values and sample sizes identically for every output format."""

from __future__ import annotations

from collections.abc import Sequence

from amnesia_bench.printable import counted
from amnesia_bench.records.report import (
    CellStatus,
    ClaimVerdict,
    Condition,
    PairedTest,
    ReportCost,
    ReportedCell,
    ReportProvenance,
    ReportTable,
    TableReport,
)
from amnesia_bench.statistics.over_seeds import ALPHA, smallest_p_value


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
        f"after the same SFT on the same prompts ({_paired_test(table)}, p < 0.05); † means that "
        "the code had uncommitted changes."
    )


def _paired_test(table: ReportTable) -> str:
    several = len(seeds_of(table)) > 1
    return "exact paired test over seeds" if several else "exact paired test"


def seeds_of(table: ReportTable) -> tuple[str, ...]:
    """Return the seeds of a table's values, in numerical order."""
    seeds = {seed for cell in table.cells for seed in cell.by_seed}
    return tuple(sorted(seeds, key=_by_number))


def format_uncertainty(table: ReportTable) -> str:
    """Return the sentences that explain what intervals and tests over several seeds mean.

    Return an empty text for a table without several seeds.
    """
    if (seeds := len(seeds_of(table))) < 2:
        return ""
    smallest = smallest_p_value(seeds)
    text = (
        f"The {seeds} seeds are the sampling unit: intervals come from a bootstrap over seeds and, "
        "within a seed, prompts, and are never narrower than the interval over prompts; tests are "
        "exact sign-flip tests of one difference per seed."
    )
    if smallest < ALPHA:
        return text
    return (
        f"{text} With {seeds} seeds, nothing can be significant at 5 % (the smallest possible p "
        f"is {smallest:.2g}), and an interval shows the spread of these seeds and prompts rather "
        "than where further seeds will lie."
    )


def format_sample_sizes(table: ReportTable) -> str:
    """Return how many prompts, answers and seeds a table's values are based on, as text."""
    groups: dict[str, list[str]] = {}
    for group in dict.fromkeys(column.group for column in table.columns):
        keys = {column.key for column in table.columns if column.group == group}
        cells = [cell for cell in table.cells if cell.column in keys and cell.value is not None]
        sizes = sorted({format_cell_size(cell) for cell in cells})
        if sizes:
            groups.setdefault(" or ".join(sizes), []).append(group)
    parts = [f"{', '.join(names)}: {sizes}" for sizes, names in groups.items()]
    if seeds := seeds_of(table):
        parts.append(f"seeds {', '.join(seeds)}" if len(seeds) > 1 else f"seed {seeds[0]}")
    return "; ".join(parts)


def _by_number(seed: str) -> tuple[int, str]:
    return (int(seed), "") if seed.isdecimal() else (-1, seed)


def format_cell_size(cell: ReportedCell) -> str:
    """Format the sample size of a cell."""
    return format_sample_size(cell.n, cell.prompts, cell.repeats, max(1, len(cell.by_seed)))


def format_sample_size(n: int, prompts: int, repeats: int = 1, seeds: int = 1) -> str:
    """Format n, also as seeds x prompts, whether seeds share prompts, and the answers to each."""
    parts = f"n = {n}"
    if seeds > 1 and n % seeds == 0:
        same = " the same" if prompts == n // seeds else ""
        parts += f" ({seeds} seeds x{same} {n // seeds} prompts)"
    elif prompts != n:
        parts += f" ({prompts} prompts)"
    return parts + (f" x {repeats} answers" if repeats > 1 else "")


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
    starred = test is not None and test.p_value < ALPHA
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
    clear = "significant" if test.p_value < ALPHA else "not significant"
    size = format_sample_size(test.n, test.prompts, seeds=test.seeds)
    pairs = f"{size.removeprefix('n = ')} pairs"
    difference = format_points(test.difference)
    return f"{difference} points from the SFT row, p = {test.p_value:.2g}, {pairs}: {clear}"


def format_estimate(condition: Condition, above: float) -> str:
    """Format an estimate, its interval, how many seeds are above the bound `above`, and the test.

    Return an empty text if there is no estimate.
    """
    if condition.estimate is None or condition.low is None or condition.high is None:
        return ""
    interval = f"({100 * condition.low:.1f} to {100 * condition.high:.1f})"
    seeds = [value > above for value in condition.by_seed.values()]
    counted = f", {sum(seeds)} of {len(seeds)} seeds" if len(seeds) > 1 else ""
    test = "" if condition.p_value is None else f", p = {condition.p_value:.2g}"
    return f"{format_points(condition.estimate)} {interval}{counted}{test}"


def format_condition(condition: Condition, above: float) -> str:
    """Format a condition's numbers as one line; `above` is the bound of its claim."""
    if condition.missing:
        measured = f"not measured: {', '.join(condition.missing)}"
    elif measured := format_estimate(condition, above):
        how = "paired" if condition.paired else "unpaired"
        seeds = max(1, len(condition.by_seed))
        measured += f", {format_sample_size(condition.n, condition.prompts, seeds=seeds)}, {how}"
        measured += _limit_of_seeds(condition)
    else:
        measured = "no standard error"
    if condition.by_seed:
        measured += "; by seed " + ", ".join(
            f"{seed} {format_points(condition.by_seed[seed])}"
            for seed in sorted(condition.by_seed, key=_by_number)
        )
    published = "" if condition.theirs is None else f"; paper {format_points(condition.theirs)}"
    return f"{measured}{published}"


def how_claims_are_decided(reports: Sequence[TableReport]) -> str:
    """Return the sentences that explain the verdicts on the claims of some tables."""
    text = (
        "A claim holds if its inequality is established for every model and column that it names. "
        "It does not hold if the opposite is established for at least one of them. "
    )
    if any(len(seeds_of(report.table)) > 1 for report in reports):
        return text + (
            "With several seeds, an inequality is established if the exact sign-flip test of the "
            "seeds' values gives p < 0.05, which takes at least six seeds."
        )
    return text + (
        "An inequality is established if its whole 95 % interval is above the bound. The interval "
        "covers other prompts with the same checkpoints, not other training runs."
    )


def _limit_of_seeds(condition: Condition) -> str:
    """Return a remark if the test of so few seeds cannot be significant."""
    seeds = len(condition.by_seed)
    smallest = smallest_p_value(seeds)
    if condition.p_value is None or smallest < ALPHA:
        return ""
    return f" (the smallest p that {seeds} seeds can give is {smallest:.2g})"


def summary(report: TableReport) -> str:
    """Return one line that counts a table's cells by status and its claims by verdict."""
    cells = report.table.cells
    count = {status: sum(c.status is status for c in cells) for status in CellStatus}
    verdicts = [claim.verdict for claim in report.claims]
    measured = (
        f"{count[CellStatus.DONE]} of {counted(len(cells), 'cell')} measured, "
        f"{count[CellStatus.INCOMPLETE]} incomplete, {count[CellStatus.MISSING]} missing."
    )
    if not verdicts:
        return measured
    return (
        f"{measured} Claims: {verdicts.count(ClaimVerdict.HOLDS)} hold, "
        f"{verdicts.count(ClaimVerdict.DOES_NOT_HOLD)} do not hold, "
        f"{verdicts.count(ClaimVerdict.NOT_SHOWN)} are not shown either way."
    )


def format_cost(cost: ReportCost) -> str:
    """Return one sentence with the summed run time of the artifacts and their machines."""
    hours = cost.seconds / 3600
    time = f"{hours:.1f} hours" if hours >= 1 else f"{cost.seconds / 60:.0f} minutes"
    where = f" on {'; '.join(cost.machines)}" if cost.machines else ""
    return (
        f"Cost: {cost.artifacts} artifacts, which took {time} in total{where}, "
        "each counted by itself although some ran at the same time."
    )


def format_provenance(made: ReportProvenance) -> str:
    """Return one line with the version and commit of the code that wrote a report, and the date."""
    changed = " with uncommitted changes" if made.dirty else ""
    commit = made.commit or "unknown commit"
    return f"amnesia_bench {made.tool_version}, {commit}{changed}, {made.created}"
