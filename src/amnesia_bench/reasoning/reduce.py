"""From verdicts to numbers: the value of a problem, and what the problems together say.

Problems are drawn, answers to one problem belong together: errors are over problems (Miller 2024,
arXiv 2411.00640), however many answers there are to each.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.records.evaluation import Interval
from amnesia_bench.statistics import wilson

BOOTSTRAP_SAMPLES = 10_000
_LEVEL = 0.95
_CHUNK = 500


@dataclass(frozen=True, kw_only=True)
class MeanEstimate:
    """A mean over problems, its standard error (None of one problem) and interval."""

    value: float
    n: int
    stderr: float | None
    interval: Interval


def average(correct: Sequence[bool]) -> float:
    """Return Avg@k of one problem: the share of its answers that are right."""
    return sum(correct) / len(correct)


def pass_at(correct: Sequence[bool], k: int) -> float:
    """Return the chance that of k answers, drawn without putting back, at least one is right.

    Unbiased for the chance with k fresh answers (Chen et al. 2021, arXiv 2107.03374).

    Raises:
        ValueError: there are fewer than k answers.
    """
    if not 1 <= k <= len(correct):
        raise ValueError(f"pass@{k} of {len(correct)} answers")
    return 1 - math.comb(len(correct) - sum(correct), k) / math.comb(len(correct), k)


def majority(correct: Sequence[bool], votes: Sequence[int | None]) -> float:
    """Return Maj@k of one problem: 1.0 if the answer with most votes is right, else 0.0.

    Args:
        correct: per answer.
        votes: per answer its class, None for no answer, which does not vote. A class is as right
            as the answer that was seen first. Of classes with equally many votes the one seen
            first wins. Without any vote the problem is wrong.
    """
    winners = _winners(correct, votes)
    return float(bool(winners) and winners[0])


def majority_expected(correct: Sequence[bool], votes: Sequence[int | None]) -> float:
    """Return what Maj@k of one problem is on the average if ties are broken at random."""
    winners = _winners(correct, votes)
    return sum(winners) / len(winners) if winners else 0.0


def _winners(correct: Sequence[bool], votes: Sequence[int | None]) -> list[bool]:
    """Return of each class with most votes if it is right, in the order they were first seen."""
    first_right: dict[int, bool] = {}
    for right, vote in zip(correct, votes, strict=True):
        if vote is not None:
            first_right.setdefault(vote, right)
    counts = Counter(vote for vote in votes if vote is not None)
    most = max(counts.values(), default=0)
    return [right for vote, right in first_right.items() if counts[vote] == most]


def mean_estimate(values: Sequence[float], *, seed: int = 0) -> MeanEstimate:
    """Return the mean of one value per problem.

    The interval is Wilson's where problems are right or wrong, else a percentile bootstrap over
    problems.

    Raises:
        ValueError: there are no problems.
    """
    data = np.asarray(values, dtype=np.float64)
    if not len(data):
        raise ValueError("no problems")
    stderr = float(data.std(ddof=1) / math.sqrt(len(data))) if len(data) > 1 else None
    if np.isin(data, (0.0, 1.0)).all():
        interval = wilson(int(data.sum()), len(data), _LEVEL)
    else:
        interval = bootstrap(data, seed=seed)
    return MeanEstimate(value=float(data.mean()), n=len(data), stderr=stderr, interval=interval)


def bootstrap(values: NDArray[np.float64], *, seed: int) -> Interval:
    """Return the percentile interval of the mean of one value per problem, float64 [N]."""
    generator = np.random.default_rng(seed)
    means = np.empty(BOOTSTRAP_SAMPLES)
    for start in range(0, BOOTSTRAP_SAMPLES, _CHUNK):
        drawn = generator.integers(len(values), size=(_CHUNK, len(values)))
        means[start : start + _CHUNK] = values[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(low=float(low), high=float(high), level=_LEVEL, method="cluster_bootstrap")
