"""Is one method better than another on the same problems? An exact test and an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from amnesia_bench.errors import UserError
from amnesia_bench.evals.reduce import bootstrap
from amnesia_bench.records.reasoning import Difference, ProblemValues


def differences(
    first: Sequence[ProblemValues],
    second: Sequence[ProblemValues],
    metrics: Sequence[str],
    answers: int,
) -> tuple[Difference, ...]:
    """Compare two methods by metrics whose values are multiples of 1/`answers`.

    Raises:
        UserError: they did not answer the same problems, or lack a metric.
    """
    by_doc = [_by_doc(first), _by_doc(second)]
    if by_doc[0].keys() != by_doc[1].keys():
        raise UserError(
            f"not the same problems: {len(by_doc[0])} and {len(by_doc[1])}, "
            f"{len(by_doc[0].keys() & by_doc[1].keys())} of them in both"
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
    """Compare two methods by their values on the same problems, in the same order."""
    ahead = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return Difference(
        metric=metric,
        first=float(np.mean(first)),
        second=float(np.mean(second)),
        difference=float(ahead.mean()),
        interval=bootstrap(ahead, seed=seed),
        p_value=sign_flip_p_value(first, second, answers),
        n=len(ahead),
    )


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


def _by_doc(problems: Sequence[ProblemValues]) -> dict[int, Mapping[str, float]]:
    return {problem.doc: problem.values for problem in problems}
