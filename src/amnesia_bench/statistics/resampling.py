"""Bootstrap intervals and randomisation tests over independent units, and rank correlations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.records.evaluation import Interval
from amnesia_bench.statistics.intervals import LEVEL

BOOTSTRAP_SAMPLES = 10_000
_DRAWS = 2000
Units = NDArray[np.float64]
Statistic = Callable[[Sequence[Units]], float]
Shuffle = Callable[[Sequence[Units], np.random.Generator], Sequence[Units]]


def percentile_interval(draws: NDArray[np.float64], method: str, level: float = LEVEL) -> Interval:
    """Return the percentile interval of bootstrap draws of a statistic."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high), level=level, method=method)


def bootstrap(values: NDArray[np.float64], *, seed: int) -> Interval:
    """Return a percentile bootstrap interval for the mean of one value per problem, float64 [N]."""
    generator = np.random.default_rng(seed)
    means = np.empty(BOOTSTRAP_SAMPLES)
    chunk = 500
    for start in range(0, BOOTSTRAP_SAMPLES, chunk):
        drawn = generator.integers(len(values), size=(chunk, len(values)))
        means[start : start + chunk] = values[drawn].mean(axis=1)
    return percentile_interval(means, "cluster_bootstrap")


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation; equal values have their mean rank.

    It is NaN if one of the sequences is constant.
    """
    ranks = [mean_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    centred = [values - values.mean() for values in ranks]
    norm = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float(centred[0] @ centred[1]) / norm if norm else math.nan


def mean_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank of each value, from 0; equal values have the mean of their ranks."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[which]
    return ranks


def bootstrap_interval(strata: Sequence[Units], statistic: Statistic) -> Interval | None:
    """Return the 95 % percentile bootstrap interval of a statistic of independent units.

    The units are resampled within each stratum. Return None if the statistic of most resamplings is
    undefined.

    Args:
        strata: one array [units, values per unit] per stratum.
        statistic: the statistic of such arrays.
    """
    rng = np.random.default_rng(0)
    draws = np.array(
        [
            statistic([units[rng.integers(0, len(units), len(units))] for units in strata])
            for _ in range(_DRAWS)
        ]
    )
    known = draws[np.isfinite(draws)]
    return None if len(known) < _DRAWS / 2 else percentile_interval(known, "unit_bootstrap")


def randomisation_p_value(
    strata: Sequence[Units],
    statistic: Statistic,
    shuffle: Shuffle,
) -> float:
    """Return the two-sided p-value of a randomisation test, from 2,000 random shuffles.

    Args:
        strata: one array [units, values per unit] per stratum.
        statistic: a statistic whose distribution under the null hypothesis is around 0.
        shuffle: draws units that are as likely as the measured ones under the null hypothesis.
    """
    rng = np.random.default_rng(0)
    observed = abs(statistic(strata))
    draws = np.array([abs(statistic(shuffle(strata, rng))) for _ in range(_DRAWS)])
    # The measured arrangement is one of the possible ones, so the p-value is never 0.
    return float((1 + (draws >= observed - 1e-12).sum()) / (1 + _DRAWS))
