"""Test one condition of a cause: an estimate above 0, its interval and its randomisation test.

Shapes: S strata (seeds or sources), N units of a stratum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from amnesia_bench.records.causes import CauseCondition
from amnesia_bench.records.report import ClaimVerdict
from amnesia_bench.statistics.resampling import (
    Shuffle,
    Statistic,
    Units,
    bootstrap_interval,
    mean_ranks,
    randomisation_p_value,
    rank_correlation,
)

# With fewer units, no exact two-sided test of pairs can have p < 0.05: 2 / 2^5 is 0.0625.
MIN_UNITS = 6
_SIGNIFICANT = 0.05


def mean_difference(
    subject: str, pairs: Sequence[tuple[float, float]], note: str
) -> CauseCondition:
    """Test whether the second value of a pair exceeds the first on average."""

    def statistic(samples: Sequence[Units]) -> float:
        first, second = samples[0].mean(axis=0)
        return float(second - first)

    units = np.array(pairs, dtype=np.float64)
    tests = (statistic, statistic, _swap)
    return _condition(subject, [units], tests, {}, note, few=len(units) < MIN_UNITS)


def correlation(
    subject: str, by_seed: Mapping[str, Sequence[tuple[float, float]]], note: str
) -> CauseCondition:
    """Test whether two values of the units are rank-correlated, within each seed.

    The estimate is the mean of the seeds' rank correlations.
    """

    def statistic(samples: Sequence[Units]) -> float:
        return float(np.mean([rank_correlation(*units.T) for units in samples]))

    def shuffle(samples: Sequence[Units], rng: np.random.Generator) -> Sequence[Units]:
        return [np.column_stack([units[:, 0], rng.permutation(units[:, 1])]) for units in samples]

    strata = {seed: np.array(units, dtype=np.float64) for seed, units in by_seed.items()}
    seeds = {seed: rank_correlation(*units.T) for seed, units in strata.items() if len(units)}
    few = min(map(len, strata.values())) < MIN_UNITS
    tests = (statistic, statistic, shuffle)
    return _condition(subject, [*strata.values()], tests, seeds, note, few=few)


def share_returned(
    subject: str, by_seed: Mapping[str, Sequence[tuple[float, float]]], note: str
) -> CauseCondition:
    """Test whether distances from the start are shorter after a restore than before it.

    The units are pairs: the distance before the restore, and after it. The estimate is the share of
    the total distance that the restore undoes; 1 means that everything is where it was.
    """

    def statistic(samples: Sequence[Units]) -> float:
        before, after = np.concatenate(samples).sum(axis=0)
        return float(1 - after / before) if before > 0 else math.nan

    def test(samples: Sequence[Units]) -> float:
        before, after = np.concatenate(samples).sum(axis=0)
        return float(before - after)

    strata = {seed: np.array(units, dtype=np.float64) for seed, units in by_seed.items()}
    seeds = {seed: statistic([units]) for seed, units in strata.items()}
    few = sum(map(len, strata.values())) < MIN_UNITS
    tests = (statistic, test, _swap)
    return _condition(subject, [*strata.values()], tests, seeds, note, few=few)


def better_predictor(
    subject: str, runs: Sequence[tuple[float, float, float]], note: str
) -> CauseCondition:
    """Test whether the first value of a run is correlated with the last more than the second is.

    The estimate is the difference of the two rank correlations.
    """
    units = np.array(runs, dtype=np.float64).reshape(-1, 3)
    ranks = np.column_stack([mean_ranks(column) for column in units.T])

    def statistic(samples: Sequence[Units]) -> float:
        first, second, target = samples[0].T
        return rank_correlation(first, target) - rank_correlation(second, target)

    tests = (statistic, statistic, _swap)
    return _condition(subject, [ranks], tests, {}, note, few=len(units) < MIN_UNITS)


def _swap(samples: Sequence[Units], rng: np.random.Generator) -> Sequence[Units]:
    """Exchange the first two values of about half of the units."""
    swapped = []
    for units in samples:
        new = units.copy()
        chosen = rng.random(len(units)) < 0.5
        new[chosen, :2] = units[chosen, 1::-1]
        swapped.append(new)
    return swapped


def _condition(
    subject: str,
    strata: Sequence[Units],
    tests: tuple[Statistic, Statistic, Shuffle],
    by_seed: Mapping[str, float],
    note: str,
    *,
    few: bool,
) -> CauseCondition:
    statistic, test, shuffle = tests
    estimate = None if not all(map(len, strata)) else statistic(strata)
    known = estimate is not None and math.isfinite(estimate)
    interval = None if few or not known else bootstrap_interval(strata, statistic)
    p_value = None if interval is None else randomisation_p_value(strata, test, shuffle)
    verdict = ClaimVerdict.NOT_ENOUGH_DATA if few else ClaimVerdict.NOT_SHOWN
    if interval is not None and p_value is not None:
        if p_value < _SIGNIFICANT and interval.low > 0:
            verdict = ClaimVerdict.HOLDS
        elif p_value < _SIGNIFICANT and interval.high < 0:
            verdict = ClaimVerdict.DOES_NOT_HOLD
    return CauseCondition(
        subject=subject,
        estimate=estimate if known else None,
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        p_value=p_value,
        n=sum(map(len, strata)),
        by_seed={seed: value for seed, value in by_seed.items() if math.isfinite(value)},
        note=note,
        verdict=verdict,
    )
