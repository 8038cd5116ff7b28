"""What right and wrong answers say: intervals and exact tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from amnesia_bench.records.evaluation import Interval


@dataclass(frozen=True, kw_only=True)
class PairedCounts:
    """How two models answered the same prompts: both right, only the first, only the second, none.

    The prompts on which exactly one was right are the discordant ones; all that can be known
    about a difference lies in them.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Accuracy of the first less that of the second: with pre and post, the drop."""
        return (self.only_first - self.only_second) / self.n


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """Return the score interval of a fraction (Wilson, JASA 22, 1927).

    `n` is no whole number where trials belong together and say as much as so many that do not.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n}")
    z = _quantile(level)
    fraction = successes / n
    centre = fraction + z * z / (2 * n)
    half = z * math.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At 0 and n the formula gives exactly 0 and 1, up to rounding.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return Interval(low=low, high=high, level=level, method="wilson")


def clustered_mean(clusters: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the mean of all values, and its variance when those of a cluster belong together.

    The variance of a ratio of cluster totals to cluster sizes (Cochran, Sampling Techniques, 3rd
    ed. 1977, chapter 6); with clusters of one it is the plain variance of a mean.

    Raises:
        ValueError: fewer than two clusters.
    """
    if len(clusters) < 2:
        raise ValueError(f"{len(clusters)} clusters have no variance")
    n = sum(map(len, clusters))
    mean = sum(map(sum, clusters)) / n
    squares = sum((sum(each) - len(each) * mean) ** 2 for each in clusters)
    return mean, squares * len(clusters) / (len(clusters) - 1) / n**2


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    If both models are equally good, each discordant prompt is a fair coin.
    """
    flips = only_first + only_second
    tail = sum(math.comb(flips, i) for i in range(min(only_first, only_second) + 1))
    return float(min(1.0, 2 * tail / 2**flips))


def sign_flip_p_value(first: Sequence[float], second: Sequence[float], answers: int) -> float:
    """Return the two-sided p-value of the exact sign-flip test of paired values.

    If both methods are equally good, each problem's difference might as well have the other sign.
    All sign patterns count, however many: the distribution of their sum is built up problem by
    problem in steps of 1/`answers`, which all values are multiples of. With values 0 and 1 this
    is McNemar's exact test.
    """
    steps = [round((a - b) * answers) for a, b in zip(first, second, strict=True)]
    # Sum s lies at index s + reach.
    reach = sum(map(abs, steps))
    chances = np.zeros(2 * reach + 1)
    chances[reach] = 1.0
    for step in filter(None, map(abs, steps)):
        moved = np.zeros_like(chances)
        moved[step:] += chances[: len(chances) - step] / 2
        moved[: len(chances) - step] += chances[step:] / 2
        chances = moved
    observed = abs(sum(steps))
    tail = chances[: reach - observed + 1].sum() + chances[reach + observed :].sum()
    return float(min(1.0, tail))


def paired_difference(counts: PairedCounts, level: float = 0.95) -> Interval:
    """Return Tango's score interval of a difference (Statistics in Medicine 17, 1998, 891-908).

    Unlike Wald's it stays inside [-1, 1], and is no single point when no prompt is discordant.
    It is asymptotic: at its level on the average over what may be true, not in every case.
    """
    z = _quantile(level)
    observed = counts.difference
    low = _root(lambda delta: _tango(counts, delta) - z, -1.0, observed)
    high = _root(lambda delta: _tango(counts, delta) + z, observed, 1.0)
    return Interval(low=low, high=high, level=level, method="tango")


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must lie between 0 and 1")
    return NormalDist().inv_cdf((1 + level) / 2)


def _tango(counts: PairedCounts, delta: float) -> float:
    """Return the score statistic of a difference `delta`; it falls as delta grows."""
    n, b, c = counts.n, counts.only_first, counts.only_second
    excess = b - c - n * delta
    # The chance of "only the second", at its likeliest value under this difference.
    linear = (2 * n - b + c) * delta - b - c
    constant = -c * delta * (1 - delta)
    only_second = (math.sqrt(max(linear * linear - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2 * only_second + delta * (1 - delta))
    if variance <= 0:
        return math.copysign(math.inf, excess) if excess else 0.0
    return excess / math.sqrt(variance)


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Return where a falling function crosses zero, or the end nearer to it."""
    for _ in range(60):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
