"""The output of a comparison of two evaluations, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from amnesia_bench.records.evaluation import Interval


class Change(Enum):
    """What a comparison shows: B is worse than A, B is better, or neither is shown."""

    WORSE = "worse"
    BETTER = "better"
    NOT_SHOWN = "not_shown"


@dataclass(frozen=True, kw_only=True)
class MetricComparison:
    """Evaluations A and B compared in one metric of one task, on the same `n` samples.

    `scorer` is lm-eval's filter or the name of a scorer. `a` and `b` are means over samples; a
    sample that was answered several times has one score, its mean. `difference` is `b` minus `a`.
    `p_value` is that of the two-sided paired test `method`. `worse_p_value` is the one-sided
    p-value that B is worse, by Holm adjusted for all rows of the comparison, and
    `better_p_value` the same for better. `smallest_detectable` is the smallest true loss that this
    comparison would have shown with the power of its rule, if the first step of Holm's procedure
    had to show it; None if it could not have shown any. `tied` is the number of samples with equal
    scores.
    """

    task: str
    metric: str
    scorer: str
    higher_is_better: bool
    n: int
    tied: int
    a: float
    b: float
    difference: float
    interval: Interval
    p_value: float
    method: str
    worse_p_value: float
    better_p_value: float
    smallest_detectable: float | None
    change: Change


@dataclass(frozen=True, kw_only=True)
class ComparisonReport:
    """The result of `amnesia compare`.

    `a` and `b` map the log files of each evaluation to their sha256. `error_rate` bounds the
    probability that any row shows a loss although there is none. `power` is the one for which
    smallest detectable losses are computed. `only_in_a` and `only_in_b` name the tasks, metrics and
    samples that were not compared, and `skipped` the metrics that have no score per sample.
    """

    format: str
    a: Mapping[str, str]
    b: Mapping[str, str]
    error_rate: float
    power: float
    rows: tuple[MetricComparison, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    skipped: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def worse(self) -> bool:
        """Whether B is shown to be worse than A in any row."""
        return any(row.change is Change.WORSE for row in self.rows)
