"""Confidence intervals of proportions, and of the difference of paired ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from amnesia_bench.records.evaluation import Interval

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class PairedCounts:
    """Numbers of prompts that both models, only one of them, or neither answered correctly.

    Prompts that exactly one model answered correctly are called discordant. Only these carry
    information about the difference in accuracy. Of scores that are fractions, the numbers are sums
    of fractions (`recall.paired_scores`).
    """

    both: float
    only_first: float
    only_second: float
    neither: float

    @property
    def n(self) -> float:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def difference(self) -> float:
        """Accuracy of the first model minus that of the second; for pre and post, the drop."""
        return (self.only_first - self.only_second) / self.n


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """Return Wilson's score interval of a proportion (JASA 22, 1927).

    For clustered trials, `n` is the effective sample size, which need not be an integer.

    Raises:
        ValueError: `n` is 0, or `successes` is not between 0 and `n`.
    """
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n}")
    z = _quantile(level)
    fraction = successes / n
    centre = fraction + z * z / (2 * n)
    half = z * math.sqrt(fraction * (1 - fraction) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Up to rounding errors, the formula gives low = 0 for 0 successes and high = 1 for n successes.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return Interval(low=low, high=high, level=level, method="wilson")


def clustered_mean(clusters: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the mean of all values, and the variance of this mean under clustered sampling.

    The mean is treated as the ratio of cluster totals to cluster sizes (Cochran, Sampling
    Techniques, 3rd ed. 1977, chapter 6). With clusters of size one, the result is the usual
    variance of a mean.

    Raises:
        ValueError: fewer than two clusters.
    """
    if len(clusters) < 2:
        raise ValueError(f"{len(clusters)} clusters have no variance")
    n = sum(map(len, clusters))
    mean = sum(map(sum, clusters)) / n
    squares = sum((sum(cluster) - len(cluster) * mean) ** 2 for cluster in clusters)
    return mean, squares * len(clusters) / (len(clusters) - 1) / n**2


def paired_difference(counts: PairedCounts, level: float = 0.95) -> Interval:
    """Return Tango's score interval of a paired difference in accuracy.

    Source: Statistics in Medicine 17, 1998, 891-908. Unlike Wald's interval, it never extends
    beyond [-1, 1], and its width is positive even without discordant prompts. It is asymptotic: its
    coverage equals `level` on average over the true parameters, not for every parameter value.
    """
    z = _quantile(level)
    observed = counts.difference
    low = root_of_falling(lambda delta: _tango(counts, delta) - z, -1.0, observed)
    high = root_of_falling(lambda delta: _tango(counts, delta) + z, observed, 1.0)
    return Interval(low=low, high=high, level=level, method="tango")


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must be between 0 and 1")
    return NormalDist().inv_cdf((1 + level) / 2)


def _tango(counts: PairedCounts, delta: float) -> float:
    """Return the score statistic of the hypothesis that the difference is `delta`.

    The statistic decreases as `delta` increases.
    """
    n, b, c = counts.n, counts.only_first, counts.only_second
    excess = b - c - n * delta
    # Maximum-likelihood estimate of the probability that only the second model is correct, under
    # the hypothesis that the difference is `delta`.
    linear = (2 * n - b + c) * delta - b - c
    constant = -c * delta * (1 - delta)
    only_second = (math.sqrt(max(linear * linear - 8 * n * constant, 0.0)) - linear) / (4 * n)
    variance = n * (2 * only_second + delta * (1 - delta))
    if variance <= 0:
        return math.copysign(math.inf, excess) if excess else 0.0
    return excess / math.sqrt(variance)


def root_of_falling(
    falling: Callable[[float], float], low: float, high: float, *, steps: int = 60
) -> float:
    """Return the zero of a decreasing function by bisection; the nearer bound if it has none."""
    for _ in range(steps):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
