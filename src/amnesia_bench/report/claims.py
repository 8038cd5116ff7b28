"""Which claims the numbers show. A claim is an inequality; its 95 % interval decides.

Above the bound the claim holds, below it does not, across it is not shown either way. Where the
answers to the same prompts are known the sum is taken prompt by prompt, so that what the rows
have in common cancels. The interval is Bonett and Price's (2012) for paired proportions, taken
over to any weights: one imagined prompt at each extreme, then the normal one. It speaks of these
checkpoints on other prompts, not of other trainings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from amnesia_bench.config.report_schema import Claim, TableConfig
from amnesia_bench.records.report import ClaimVerdict, Condition, DecidedClaim
from amnesia_bench.report.layout import resolved
from amnesia_bench.report.places import Place, Placed
from amnesia_bench.report.published import published_value

_Z = 1.959963984540054  # of a two-sided 95 %
_TIE = 1e-9  # the paper's numbers are decimals: 0.342 - 0.342 is not always 0


@dataclass(frozen=True, kw_only=True)
class _Sum:
    """A weighted sum of methods in one column: as measured, and as the interval is built on."""

    estimate: float
    centre: float
    variance: float
    n: int
    paired: bool


def decide(
    claims: Sequence[Claim], table: TableConfig, places: Mapping[Place, Placed]
) -> tuple[DecidedClaim, ...]:
    """Hold each claim against our numbers and against the paper's own."""
    return tuple(_decide(claim, table, places) for claim in claims)


def overall(conditions: Sequence[Condition]) -> ClaimVerdict:
    """Return the verdict on all: one that fails is enough, to hold takes each."""
    verdicts = {condition.verdict for condition in conditions}
    if ClaimVerdict.DOES_NOT_HOLD in verdicts:
        return ClaimVerdict.DOES_NOT_HOLD
    return ClaimVerdict.HOLDS if verdicts == {ClaimVerdict.HOLDS} else ClaimVerdict.NOT_SHOWN


def _decide(claim: Claim, table: TableConfig, places: Mapping[Place, Placed]) -> DecidedClaim:
    conditions = tuple(
        _condition(claim, table, places, model, resolved(column, table))
        for model in claim.models or table.models
        for column in claim.columns
    )
    in_paper = [condition.theirs for condition in conditions]
    known = [value for value in in_paper if value is not None]
    return DecidedClaim(
        id=claim.id,
        text=claim.text,
        place=claim.place,
        formula=_formula(claim, table),
        above=claim.above,
        aim=claim.aim,
        verdict=overall(conditions),
        holds_in_paper=all(value > claim.above + _TIE for value in known)
        if len(known) == len(in_paper)
        else None,
        conditions=conditions,
    )


def _condition(
    claim: Claim, table: TableConfig, places: Mapping[Place, Placed], model: str, column: str
) -> Condition:
    signs = {column: 1.0} | ({resolved(claim.than, table): -1.0} if claim.than else {})
    sums, missing, theirs = [], [], 0.0
    for key, sign in signs.items():
        weights = {method: sign * weight for method, weight in claim.weights.items()}
        rows = {method: places.get((model, method, key)) for method in weights}
        missing += [f"{m} {key}" for m, row in rows.items() if row is None or row.value is None]
        there = {method: row for method, row in rows.items() if row is not None}
        if not missing:
            sums.append(_weighted(there, weights))
        for method, weight in weights.items():
            value = published_value(table.published, model, method, key)
            theirs += math.nan if value is None else weight * value
    found = _added(sums) if sums and None not in sums and not missing else None
    half = 0.0 if found is None else _Z * math.sqrt(found.variance)
    return Condition(
        model=model,
        column=column,
        estimate=None if found is None else found.estimate,
        low=None if found is None else found.centre - half,
        high=None if found is None else found.centre + half,
        n=0 if found is None else found.n,
        paired=found is not None and found.paired,
        missing=tuple(missing),
        verdict=ClaimVerdict.NOT_SHOWN
        if found is None
        else _verdict(found.centre - half, found.centre + half, claim.above),
        theirs=None if math.isnan(theirs) else theirs,
    )


def _verdict(low: float, high: float, above: float) -> ClaimVerdict:
    if low > above:
        return ClaimVerdict.HOLDS
    return ClaimVerdict.DOES_NOT_HOLD if high < above else ClaimVerdict.NOT_SHOWN


def _weighted(rows: Mapping[str, Placed], weights: Mapping[str, float]) -> _Sum | None:
    """Return the sum over the answers in common, else over the cells as if independent."""
    common = set.intersection(*(set(row.answers) for row in rows.values()))
    values = [
        sum(weight * rows[method].answers[key] for method, weight in weights.items())
        for key in sorted(common, key=str)
    ]
    if values:
        extremes = [
            sum(weight for weight in weights.values() if weight > 0),
            sum(weight for weight in weights.values() if weight < 0),
        ]
        centre, variance = _mean_and_variance([*values, *extremes])
        estimate = sum(values) / len(values)
        return _Sum(estimate=estimate, centre=centre, variance=variance, n=len(values), paired=True)
    estimate = variance = 0.0
    for method, weight in weights.items():
        value, stderr = rows[method].value, rows[method].stderr
        if value is None or stderr is None:
            return None
        # At 0 and 1 the error of a share is 0 by the formula, and not in truth.
        floor = 1 / (rows[method].n + 2)
        estimate += weight * value
        variance += (weight * max(stderr, floor)) ** 2
    n = min(row.n for row in rows.values())
    return _Sum(estimate=estimate, centre=estimate, variance=variance, n=n, paired=False)


def _mean_and_variance(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and its variance."""
    mean = sum(values) / len(values)
    squares = sum((value - mean) ** 2 for value in values)
    return mean, squares / (len(values) - 1) / len(values)


def _added(sums: Sequence[_Sum | None]) -> _Sum | None:
    """Add sums over different prompts, whose errors are independent."""
    known = [each for each in sums if each is not None]
    if len(known) != len(sums):
        return None
    return _Sum(
        estimate=sum(each.estimate for each in known),
        centre=sum(each.centre for each in known),
        variance=sum(each.variance for each in known),
        n=min(each.n for each in known),
        paired=all(each.paired for each in known),
    )


def _formula(claim: Claim, table: TableConfig) -> str:
    """Return the inequality as a reader would write it, in the methods' ids."""
    terms = []
    for method, weight in claim.weights.items():
        size = "" if abs(weight) == 1 else f"{abs(weight):g} "
        sign = "-" if weight < 0 else "+"
        terms.append(f"{sign} {size}{method}")
    text = " ".join(terms).removeprefix("+ ")
    if claim.than:
        text = f"({text}) - the same at {resolved(claim.than, table)}"
    return f"{text} > {100 * claim.above:g}"
