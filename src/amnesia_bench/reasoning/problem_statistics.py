"""Statistics of verdicts: metric values per problem, means over problems, paired differences.

The answers to one problem form a cluster, so problems are the sampling unit of standard errors and
intervals, whatever the number of answers per problem (Miller 2024, arXiv 2411.00640).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.errors import UserError
from amnesia_bench.records.evaluation import Interval
from amnesia_bench.records.reasoning import Difference, ProblemValues
from amnesia_bench.statistics import sign_flip_p_value, wilson

BOOTSTRAP_SAMPLES = 10_000
_LEVEL = 0.95
_CHUNK = 500


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
        interval = wilson(int(data.sum()), len(data), _LEVEL)
    else:
        interval = bootstrap(data, seed=seed)
    return MeanEstimate(value=float(data.mean()), n=len(data), stderr=stderr, interval=interval)


def bootstrap(values: NDArray[np.float64], *, seed: int) -> Interval:
    """Return a percentile bootstrap interval for the mean of one value per problem, float64 [N]."""
    generator = np.random.default_rng(seed)
    means = np.empty(BOOTSTRAP_SAMPLES)
    for start in range(0, BOOTSTRAP_SAMPLES, _CHUNK):
        drawn = generator.integers(len(values), size=(_CHUNK, len(values)))
        means[start : start + _CHUNK] = values[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(low=float(low), high=float(high), level=_LEVEL, method="cluster_bootstrap")


def differences(
    first: Sequence[ProblemValues],
    second: Sequence[ProblemValues],
    metrics: Sequence[str],
    answers: int,
) -> tuple[Difference, ...]:
    """Compare two methods by each metric; every metric value must be a multiple of 1/`answers`.

    Raises:
        UserError: the methods answered different problems.
    """
    by_doc = [_by_doc(first), _by_doc(second)]
    if by_doc[0].keys() != by_doc[1].keys():
        raise UserError(
            f"the problems differ: {len(by_doc[0])} in the first, {len(by_doc[1])} in the second, "
            f"{len(by_doc[0].keys() & by_doc[1].keys())} in both"
        )
    return tuple(
        difference(
            metric,
            [by_doc[0][doc][metric] for doc in by_doc[0]],
            [by_doc[1][doc][metric] for doc in by_doc[0]],
            answers,
        )
        for metric in metrics
    )


def difference(
    metric: str, first: Sequence[float], second: Sequence[float], answers: int, *, seed: int = 0
) -> Difference:
    """Compare two methods by one metric; both list their values in the same order of problems."""
    paired = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return Difference(
        metric=metric,
        first=float(np.mean(first)),
        second=float(np.mean(second)),
        difference=float(paired.mean()),
        interval=bootstrap(paired, seed=seed),
        p_value=sign_flip_p_value(first, second, answers),
        n=len(paired),
    )


def _by_doc(problems: Sequence[ProblemValues]) -> dict[int, Mapping[str, float]]:
    return {problem.doc: problem.values for problem in problems}
