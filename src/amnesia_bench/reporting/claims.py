"""Decide claims: each is an inequality between a weighted sum of methods and a bound.

If the rows have answers to the same prompts, the weighted sum is computed per prompt, which cancels
the variation that the rows share.

With several seeds, the seed decides: a claim holds if the sum is above the bound by the exact
sign-flip test of the seeds' sums (p < 0.05, two-sided), does not hold if it is below by this test,
and is not shown otherwise. With fewer than six seeds, no such test can be significant. The interval
is the bootstrap interval over seeds and prompts, widened to contain the interval over prompts.

Without several seeds, the 95 % interval over prompts decides: a claim holds if the interval is
above the bound, does not hold if it is below, and is not shown if the interval contains the bound.
It is the interval of Bonett and Price (2012) for paired proportions, generalised to arbitrary
weights: add one pseudo-prompt at each extreme of the sum, then compute the normal interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from amnesia_bench.config.report_schema import Claim, TableConfig
from amnesia_bench.records.evaluation import Interval
from amnesia_bench.records.report import ClaimVerdict, Condition, DecidedClaim
from amnesia_bench.reporting.answers import AnswerKey
from amnesia_bench.reporting.pooling import (
    SlotCells,
    answers_by_seed,
    by_prompt,
    common_answers,
    seed_means,
)
from amnesia_bench.reporting.published import published_value
from amnesia_bench.reporting.table_layout import column_key
from amnesia_bench.reporting.table_slots import FilledSlots
from amnesia_bench.statistics.intervals import clustered_mean
from amnesia_bench.statistics.over_seeds import (
    ALPHA,
    BOOTSTRAP_METHOD,
    bootstrap_means,
    sign_flip_over_seeds,
    widened,
)
from amnesia_bench.statistics.resampling import percentile_interval

_LEVEL = 0.95
_Z = 1.959963984540054  # two-sided 95 %
_TIE = 1e-9  # tolerance, since sums of the paper's decimals may differ from 0 by rounding errors


@dataclass(frozen=True, kw_only=True)
class _Sum:
    """The weighted sum of methods in one or two columns, with its normal interval over prompts.

    `columns` has the sum in each column for every seed and prompt. If the answers are unknown, it
    has one value per seed instead, and `paired` is false.
    """

    estimate: float
    centre: float
    variance: float
    n: int
    prompts: int
    paired: bool
    columns: tuple[Mapping[AnswerKey, float], ...]

    @property
    def over_prompts(self) -> Interval:
        half = _Z * math.sqrt(self.variance)
        low, high = self.centre - half, self.centre + half
        return Interval(low=low, high=high, level=_LEVEL, method="normal")

    @property
    def by_seed(self) -> dict[str, float]:
        """The sum of each named seed that all columns have."""
        means = [seed_means(values) for values in self.columns]
        seeds = [seed for seed in means[0] if all(seed in other for other in means)]
        return {seed: sum(values[seed] for values in means) for seed in seeds}

    def over_seeds(self) -> Interval:
        """Return the bootstrap interval over seeds and prompts."""
        columns = [answers_by_seed(values) for values in self.columns]
        draws = sum(
            bootstrap_means([values[seed] for seed in self.by_seed], stream)
            for stream, values in enumerate(columns)
        )
        return percentile_interval(np.asarray(draws), BOOTSTRAP_METHOD)


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
    theirs = None if math.isnan(published) else published
    if total is None:
        return Condition(
            model=model,
            column=column,
            estimate=None,
            low=None,
            high=None,
            n=0,
            prompts=0,
            by_seed={},
            p_value=None,
            paired=False,
            missing=tuple(missing),
            verdict=ClaimVerdict.NOT_SHOWN,
            theirs=theirs,
        )
    interval, estimate, p_value = total.over_prompts, total.estimate, None
    if len(by_seed := total.by_seed) > 1:
        interval = widened(total.over_seeds(), interval)
        estimate = sum(by_seed.values()) / len(by_seed)
        p_value = sign_flip_over_seeds([value - claim.above for value in by_seed.values()])
    return Condition(
        model=model,
        column=column,
        estimate=estimate,
        low=interval.low,
        high=interval.high,
        n=total.n,
        prompts=total.prompts,
        by_seed=by_seed,
        p_value=p_value,
        paired=total.paired,
        missing=(),
        verdict=_verdict(estimate, interval, p_value, claim.above),
        theirs=theirs,
    )


def _verdict(
    estimate: float, interval: Interval, p_value: float | None, above: float
) -> ClaimVerdict:
    """Decide by the test over seeds if there is one, else by the interval."""
    shown = interval.low > above or interval.high < above if p_value is None else p_value < ALPHA
    if not shown:
        return ClaimVerdict.NOT_SHOWN
    return ClaimVerdict.HOLDS if estimate > above else ClaimVerdict.DOES_NOT_HOLD


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
            columns=(sums,),
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
        columns=(_sums_by_seed(rows, weights),),
    )


def _sums_by_seed(
    rows: Mapping[str, SlotCells], weights: Mapping[str, float]
) -> dict[AnswerKey, float]:
    """Return the weighted sum of the rows' values for each seed that all rows with seeds have."""
    seeded = [row.by_seed for row in rows.values() if row.by_seed]
    common = set.intersection(*map(set, seeded)) if seeded else set()
    return {
        (seed, seed, 0): sum(
            weight * rows[method].by_seed.get(seed, rows[method].value or 0.0)
            for method, weight in weights.items()
        )
        for seed in sorted(common)
    }


def _add_sums(sums: Sequence[_Sum | None]) -> _Sum | None:
    """Add sums over different prompts, whose errors are independent; None if a sum is None."""
    known = [term for term in sums if term is not None]
    if len(known) != len(sums):
        return None
    return _Sum(
        estimate=sum(term.estimate for term in known),
        centre=sum(term.centre for term in known),
        variance=sum(term.variance for term in known),
        n=min(term.n for term in known),
        prompts=min(term.prompts for term in known),
        paired=all(term.paired for term in known),
        columns=tuple(column for term in known for column in term.columns),
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
