"""Decide claims: each is an inequality, which is decided by the 95 % interval of its left side.

The left side is a weighted sum of methods, the right side a bound. A claim holds if the interval is
above the bound, does not hold if it is below, and is not shown if the interval contains the bound.
If the rows have answers to the same prompts, the weighted sum is computed per prompt, which cancels
the variation that the rows share; the answers to one prompt from all seeds are one cluster.

The interval is that of Bonett and Price (2012) for paired proportions, generalised to arbitrary
weights: add one pseudo-prompt at each extreme of the sum, then compute the normal interval. It
accounts for the choice of prompts, but not for the variation between training runs, which the
estimates by seed show.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from amnesia_bench.config.report_schema import Claim, TableConfig
from amnesia_bench.records.report import ClaimVerdict, Condition, DecidedClaim
from amnesia_bench.reporting.pooling import SlotCells, by_prompt, common_answers, seed_means
from amnesia_bench.reporting.published import published_value
from amnesia_bench.reporting.table_layout import column_key
from amnesia_bench.reporting.table_slots import FilledSlots
from amnesia_bench.statistics import clustered_mean

_Z = 1.959963984540054  # two-sided 95 %
_TIE = 1e-9  # tolerance, since sums of the paper's decimals may differ from 0 by rounding errors


@dataclass(frozen=True, kw_only=True)
class _Sum:
    """The weighted sum of methods in one column, and the centre and variance of its interval."""

    estimate: float
    centre: float
    variance: float
    n: int
    prompts: int
    paired: bool
    by_seed: Mapping[str, float] = field(default_factory=dict)


def decide(table: TableConfig, slots: FilledSlots) -> tuple[DecidedClaim, ...]:
    """Decide each claim of a table, once with the measured numbers and once with the paper's."""
    return tuple(_decide(name, claim, table, slots) for name, claim in table.claims.items())


def claim_verdict(conditions: Sequence[Condition]) -> ClaimVerdict:
    """Combine the verdicts on a claim's conditions into the verdict on the claim.

    A claim does not hold if any condition does not hold; it holds only if all conditions hold.
    """
    verdicts = {condition.verdict for condition in conditions}
    if ClaimVerdict.DOES_NOT_HOLD in verdicts:
        return ClaimVerdict.DOES_NOT_HOLD
    return ClaimVerdict.HOLDS if verdicts == {ClaimVerdict.HOLDS} else ClaimVerdict.NOT_SHOWN


def _decide(name: str, claim: Claim, table: TableConfig, slots: FilledSlots) -> DecidedClaim:
    conditions = tuple(
        _condition(claim, table, slots, model, column_key(column, table))
        for model in claim.models or table.models
        for column in claim.columns
    )
    published = [condition.theirs for condition in conditions]
    known = [value for value in published if value is not None]
    return DecidedClaim(
        id=name,
        text=claim.text,
        place=claim.place,
        formula=_formula(claim, table),
        above=claim.above,
        aim=claim.aim,
        verdict=claim_verdict(conditions),
        holds_in_paper=all(value > claim.above + _TIE for value in known)
        if len(known) == len(published)
        else None,
        conditions=conditions,
    )


def _condition(
    claim: Claim, table: TableConfig, slots: FilledSlots, model: str, column: str
) -> Condition:
    signs = {column: 1.0} | ({column_key(claim.than, table): -1.0} if claim.than else {})
    sums, missing, published = [], [], 0.0
    for key, sign in signs.items():
        weights = {method: sign * weight for method, weight in claim.weights.items()}
        rows = {method: slots.get((model, method, key)) for method in weights}
        missing += [f"{m} {key}" for m, row in rows.items() if row is None or row.value is None]
        measured = {method: row for method, row in rows.items() if row is not None}
        if not missing:
            sums.append(_weighted_sum(measured, weights))
        for method, weight in weights.items():
            value = published_value(table.published, model, method, key)
            published += math.nan if value is None else weight * value
    total = _add_sums(sums) if sums and None not in sums and not missing else None
    half = 0.0 if total is None else _Z * math.sqrt(total.variance)
    return Condition(
        model=model,
        column=column,
        estimate=None if total is None else total.estimate,
        low=None if total is None else total.centre - half,
        high=None if total is None else total.centre + half,
        n=0 if total is None else total.n,
        prompts=0 if total is None else total.prompts,
        by_seed={} if total is None else total.by_seed,
        paired=total is not None and total.paired,
        missing=tuple(missing),
        verdict=ClaimVerdict.NOT_SHOWN
        if total is None
        else _verdict(total.centre - half, total.centre + half, claim.above),
        theirs=None if math.isnan(published) else published,
    )


def _verdict(low: float, high: float, above: float) -> ClaimVerdict:
    if low > above:
        return ClaimVerdict.HOLDS
    return ClaimVerdict.DOES_NOT_HOLD if high < above else ClaimVerdict.NOT_SHOWN


def _weighted_sum(rows: Mapping[str, SlotCells], weights: Mapping[str, float]) -> _Sum | None:
    """Return the weighted sum of rows, or None if a row lacks a value or standard error.

    The sum uses the answers that all rows have in common. If there are none, it uses the cells and
    treats their errors as independent.
    """
    answers = common_answers([rows[method] for method in weights])
    sums = {
        key: sum(weight * value for weight, value in zip(weights.values(), values, strict=True))
        for key, values in answers.items()
    }
    if sums:
        prompts = list(by_prompt(sums).values())
        size = round(len(sums) / len(prompts))
        highest = sum(weight for weight in weights.values() if weight > 0)
        lowest = sum(weight for weight in weights.values() if weight < 0)
        centre, variance = clustered_mean([*prompts, [highest] * size, [lowest] * size])
        return _Sum(
            estimate=sum(sums.values()) / len(sums),
            centre=centre,
            variance=variance,
            n=len(sums),
            prompts=len(prompts),
            paired=True,
            by_seed=seed_means(sums),
        )
    estimate = variance = 0.0
    for method, weight in weights.items():
        value, stderr = rows[method].value, rows[method].stderr
        if value is None or stderr is None:
            return None
        # For a proportion of 0 or 1, the standard error formula gives 0, which is too small.
        floor = 1 / (rows[method].prompts + 2)
        estimate += weight * value
        variance += (weight * max(stderr, floor)) ** 2
    return _Sum(
        estimate=estimate,
        centre=estimate,
        variance=variance,
        n=min(row.n for row in rows.values()),
        prompts=min(row.prompts for row in rows.values()),
        paired=False,
    )


def _add_sums(sums: Sequence[_Sum | None]) -> _Sum | None:
    """Add sums over different prompts, whose errors are independent; None if a sum is None."""
    known = [term for term in sums if term is not None]
    if len(known) != len(sums):
        return None
    seeds = Counter(seed for term in known for seed in term.by_seed)
    return _Sum(
        estimate=sum(term.estimate for term in known),
        centre=sum(term.centre for term in known),
        variance=sum(term.variance for term in known),
        n=min(term.n for term in known),
        prompts=min(term.prompts for term in known),
        paired=all(term.paired for term in known),
        by_seed={
            seed: sum(term.by_seed[seed] for term in known)
            for seed, count in seeds.items()
            if count == len(known)
        },
    )


def _formula(claim: Claim, table: TableConfig) -> str:
    """Format a claim's inequality as text, with method ids as terms and the bound in points."""
    terms = []
    for method, weight in claim.weights.items():
        size = "" if abs(weight) == 1 else f"{abs(weight):g} "
        sign = "-" if weight < 0 else "+"
        terms.append(f"{sign} {size}{method}")
    text = " ".join(terms).removeprefix("+ ")
    if claim.than:
        text = f"({text}) - the same at {column_key(claim.than, table)}"
    return f"{text} > {100 * claim.above:g}"
