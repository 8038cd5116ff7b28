"""Is one method better than another on the same problems? An exact test and an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from amnesia_bench.errors import UserError
from amnesia_bench.reasoning.reduce import bootstrap
from amnesia_bench.records.reasoning import Difference, ProblemValues
from amnesia_bench.statistics import sign_flip_p_value


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


def _by_doc(problems: Sequence[ProblemValues]) -> dict[int, Mapping[str, float]]:
    return {problem.doc: problem.values for problem in problems}
