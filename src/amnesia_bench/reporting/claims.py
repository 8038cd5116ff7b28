"""Which claims the numbers show. A claim is an inequality; its 95 % interval decides.

Above the bound the claim holds, below it does not, across it is not shown either way. Where the
answers to the same prompts are known the sum is taken prompt by prompt, so that what the rows
have in common cancels; of several seeds all answers to one prompt are one draw. The interval is
Bonett and Price's (2012) for paired proportions, taken over to any weights: one imagined prompt
at each extreme, then the normal one. It speaks of these checkpoints on other prompts, not of
other trainings: those are seen in the estimates by seed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from amnesia_bench.config.report_schema import Claim, TableConfig
from amnesia_bench.records.report import ClaimVerdict, Condition, DecidedClaim
from amnesia_bench.reporting.pooling import SlotCells, by_prompt, in_common, seed_means
from amnesia_bench.reporting.published import published_value
from amnesia_bench.reporting.table_layout import resolved
from amnesia_bench.reporting.table_slots import FilledSlots
from amnesia_bench.statistics import clustered_mean

_Z = 1.959963984540054  # of a two-sided 95 %
_TIE = 1e-9  # the paper's numbers are decimals: 0.342 - 0.342 is not always 0


@dataclass(frozen=True, kw_only=True)
class _Sum:
    """A weighted sum of methods in one column: as measured, and as the interval is built on."""

    estimate: float
    centre: float
    variance: float
    n: int
    prompts: int
    paired: bool
    by_seed: Mapping[str, float] = field(default_factory=dict)


def decide(table: TableConfig, slots: FilledSlots) -> tuple[DecidedClaim, ...]:
    """Hold each claim of a table against our numbers and against the paper's own."""
    return tuple(_decide(name, claim, table, slots) for name, claim in table.claims.items())


def claim_verdict(conditions: Sequence[Condition]) -> ClaimVerdict:
    """Return the verdict on all: one that fails is enough, to hold takes each."""
    verdicts = {condition.verdict for condition in conditions}
    if ClaimVerdict.DOES_NOT_HOLD in verdicts:
        return ClaimVerdict.DOES_NOT_HOLD
    return ClaimVerdict.HOLDS if verdicts == {ClaimVerdict.HOLDS} else ClaimVerdict.NOT_SHOWN


def _decide(name: str, claim: Claim, table: TableConfig, slots: FilledSlots) -> DecidedClaim:
    conditions = tuple(
        _condition(claim, table, slots, model, resolved(column, table))
        for model in claim.models or table.models
        for column in claim.columns
    )
    in_paper = [condition.theirs for condition in conditions]
    known = [value for value in in_paper if value is not None]
    return DecidedClaim(
        id=name,
        text=claim.text,
        place=claim.place,
        formula=_formula(claim, table),
        above=claim.above,
        aim=claim.aim,
        verdict=claim_verdict(conditions),
        holds_in_paper=all(value > claim.above + _TIE for value in known)
        if len(known) == len(in_paper)
        else None,
        conditions=conditions,
    )


def _condition(
    claim: Claim, table: TableConfig, slots: FilledSlots, model: str, column: str
) -> Condition:
    signs = {column: 1.0} | ({resolved(claim.than, table): -1.0} if claim.than else {})
    sums, missing, theirs = [], [], 0.0
    for key, sign in signs.items():
        weights = {method: sign * weight for method, weight in claim.weights.items()}
        rows = {method: slots.get((model, method, key)) for method in weights}
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
        prompts=0 if found is None else found.prompts,
        by_seed={} if found is None else found.by_seed,
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


def _weighted(rows: Mapping[str, SlotCells], weights: Mapping[str, float]) -> _Sum | None:
    """Return the sum over the answers in common, else over the cells as if independent."""
    answers = in_common([rows[method] for method in weights])
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
        # At 0 and 1 the error of a share is 0 by the formula, and not in truth.
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


def _added(sums: Sequence[_Sum | None]) -> _Sum | None:
    """Add sums over different prompts, whose errors are independent."""
    known = [each for each in sums if each is not None]
    if len(known) != len(sums):
        return None
    seeds = Counter(seed for each in known for seed in each.by_seed)
    return _Sum(
        estimate=sum(each.estimate for each in known),
        centre=sum(each.centre for each in known),
        variance=sum(each.variance for each in known),
        n=min(each.n for each in known),
        prompts=min(each.prompts for each in known),
        paired=all(each.paired for each in known),
        by_seed={
            seed: sum(each.by_seed[seed] for each in known)
            for seed, count in seeds.items()
            if count == len(known)
        },
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
