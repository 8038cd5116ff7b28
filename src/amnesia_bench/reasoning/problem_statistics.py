"""Statistics of verdicts: metric values per problem, and means over problems.

The answers to one problem form a cluster, so problems are the sampling unit of standard errors and
intervals, whatever the number of answers per problem (Miller 2024, arXiv 2411.00640).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from amnesia_bench.records.evaluation import Interval
from amnesia_bench.statistics.intervals import wilson
from amnesia_bench.statistics.resampling import bootstrap


@dataclass(frozen=True, kw_only=True)
class MeanEstimate:
    """A mean over problems, its standard error (None for a single problem) and its interval."""

    value: float
    n: int
    stderr: float | None
    interval: Interval


def average(correct: Sequence[bool]) -> float:
    """Return Avg@k of one problem: the fraction of its answers that are correct."""
    return sum(correct) / len(correct)


def pass_at(correct: Sequence[bool], k: int) -> float:
    """Return Pass@k: the probability that k of the answers, drawn at random, include a correct one.

    They are drawn without replacement. This is the unbiased estimator of the probability that at
    least one of k new answers is correct (Chen et al. 2021, arXiv 2107.03374).

    Raises:
        ValueError: there are fewer than k answers.
    """
    if not 1 <= k <= len(correct):
        raise ValueError(f"pass@{k} of {len(correct)} answers")
    return 1 - math.comb(len(correct) - sum(correct), k) / math.comb(len(correct), k)


def majority(correct: Sequence[bool], votes: Sequence[int | None]) -> float:
    """Return Maj@k of one problem: 1.0 if the class with most votes is correct, else 0.0.

    A class is correct if its first answer is. Ties are won by the class that appears first. The
    value of a problem without votes is 0.0.

    Args:
        correct: whether each answer is correct.
        votes: the equivalence class of each answer; None, which is not a vote, if an attempt
            contains no answer.
    """
    winners = _winners(correct, votes)
    return float(bool(winners) and winners[0])


def majority_expected(correct: Sequence[bool], votes: Sequence[int | None]) -> float:
    """Return the expected value of Maj@k of one problem when ties are broken at random."""
    winners = _winners(correct, votes)
    return sum(winners) / len(winners) if winners else 0.0


def _winners(correct: Sequence[bool], votes: Sequence[int | None]) -> list[bool]:
    """For each class with most votes, in order of appearance, return whether it is correct."""
    class_correct: dict[int, bool] = {}
    for is_correct, vote in zip(correct, votes, strict=True):
        if vote is not None:
            class_correct.setdefault(vote, is_correct)
    counts = Counter(vote for vote in votes if vote is not None)
    most = max(counts.values(), default=0)
    return [is_correct for vote, is_correct in class_correct.items() if counts[vote] == most]


def mean_estimate(values: Sequence[float], *, seed: int = 0) -> MeanEstimate:
    """Return the mean of one value per problem, with its standard error and interval.

    The interval is Wilson's if every value is 0 or 1, else a percentile bootstrap over problems.

    Raises:
        ValueError: there are no problems.
    """
    data = np.asarray(values, dtype=np.float64)
    if not len(data):
        raise ValueError("no problems")
    stderr = float(data.std(ddof=1) / math.sqrt(len(data))) if len(data) > 1 else None
    if np.isin(data, (0.0, 1.0)).all():
        interval = wilson(int(data.sum()), len(data))
    else:
        interval = bootstrap(data, seed=seed)
    return MeanEstimate(value=float(data.mean()), n=len(data), stderr=stderr, interval=interval)
