"""Compare two evaluations of the same tasks, sample by sample: the front door `compare`.

Two models that answer the same samples share the difficulty of each sample, so the paired
difference has a far smaller error than the difference of two means. The test is exact where the
scores allow it: McNemar's for right and wrong, the sign-flip test for scores on a grid.

The verdict follows the rule of `amnesia check`: B is worse if the one-sided p-value, by Holm
adjusted for all rows, is at most 2.5 %. The false-alarm rate of a whole comparison is therefore at
most 2.5 %, however many tasks and metrics it has and however they depend on each other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from amnesia_bench.comparison.opening import open_score_log
from amnesia_bench.comparison.pairing import MetricPairs, pair_logs
from amnesia_bench.comparison.score_log import ScoreLog
from amnesia_bench.comparison.summary import comparison_markdown
from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.comparison import Change, ComparisonReport, MetricComparison
from amnesia_bench.records.evaluation import Interval
from amnesia_bench.requests.comparison import CompareRequest
from amnesia_bench.statistics.intervals import PairedCounts, paired_difference
from amnesia_bench.statistics.paired_tests import holm, paired_permutation_p_value
from amnesia_bench.statistics.power import smallest_detectable_loss
from amnesia_bench.statistics.resampling import bootstrap
from amnesia_bench.store.files import write_json
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing

REPORT, SUMMARY = "comparison.json", "comparison.md"
LOSS_ERROR_RATE = 0.025
POWER = 0.8


def compare(request: CompareRequest, out: Path | None = None) -> ComparisonReport:
    """Compare two evaluations of the same tasks, sample by sample.

    Args:
        request: the two evaluations.
        out: a new folder for the report, `comparison.json` and `comparison.md`; None writes none.

    Raises:
        UserError: A and B are the same files, one of them has no scores per sample, the two cannot
            be paired (see `open_score_log` and `pair_logs`), or `out` exists.
        MissingEnvironmentError: a file cannot be read, or `out` cannot be written.
    """
    if out is None:
        return _compare(request)
    provenance = collect_provenance(["amnesia", *sys.argv[1:]], seeds={})
    with publishing(out) as work:
        report = _compare(request)
        write_json(work.folder / REPORT, codec.to_json(report))
        (work.folder / SUMMARY).write_text(comparison_markdown(report), encoding="utf-8")
        parents = [
            Parent(role=role, location=str(folder), identity="unknown")
            for role, folder in (("a", request.a), ("b", request.b))
        ]
        work.finish("comparison", parents, provenance)
    return report


def _compare(request: CompareRequest) -> ComparisonReport:
    a, b = open_score_log(request.a), open_score_log(request.b)
    if {file.resolve() for file in a.files} & {file.resolve() for file in b.files}:
        raise UserError(
            f"{request.a} and {request.b}: A and B are the same files",
            hint="Pass the logs of two evaluations.",
        )
    pairing = pair_logs(
        a, b, common_only=request.common_only, different_prompts=request.different_prompts
    )
    hashes = _hashes(a), _hashes(b)
    warnings = [*a.warnings, *b.warnings, *pairing.warnings]
    if set(hashes[0].values()) == set(hashes[1].values()):
        warnings.append("the logs of A and B are byte-identical")
    return ComparisonReport(
        format=a.format,
        a=hashes[0],
        b=hashes[1],
        error_rate=LOSS_ERROR_RATE,
        power=POWER,
        rows=_rows(pairing.pairs),
        only_in_a=pairing.only_in_a,
        only_in_b=pairing.only_in_b,
        skipped=tuple(dict.fromkeys((*a.skipped, *b.skipped))),
        warnings=tuple(warnings),
    )


def _hashes(log: ScoreLog) -> dict[str, str]:
    return {str(file): sha256_of(file) for file in log.files}


def _rows(pairs: Sequence[MetricPairs]) -> tuple[MetricComparison, ...]:
    tests = [paired_permutation_p_value(pair.a, pair.b) for pair in pairs]
    # The distribution of the sign-flip test is symmetric, so one side has half the p-value.
    sides = [
        (p_value / 2, 1 - p_value / 2) if _gain(pair) < 0 else (1 - p_value / 2, p_value / 2)
        for pair, (p_value, _) in zip(pairs, tests, strict=True)
    ]
    worse = holm([side[0] for side in sides])
    better = holm([side[1] for side in sides])
    return tuple(
        _row(pair, test, (worse[i], better[i]), len(pairs))
        for i, (pair, test) in enumerate(zip(pairs, tests, strict=True))
    )


def _gain(pair: MetricPairs) -> float:
    """Return by how much B is better in the mean; negative if it is worse."""
    difference = float(np.mean(pair.b) - np.mean(pair.a))
    return difference if pair.higher_is_better else -difference


def _row(
    pair: MetricPairs, test: tuple[float, str], sides: tuple[float, float], rows: int
) -> MetricComparison:
    a, b = np.asarray(pair.a), np.asarray(pair.b)
    paired = b - a
    tied = np.isclose(paired, 0.0, rtol=0.0, atol=1e-9)
    binary = bool(np.isin(np.concatenate([a, b]), (0.0, 1.0)).all())
    change = Change.NOT_SHOWN
    if min(sides) <= LOSS_ERROR_RATE:
        change = Change.WORSE if sides[0] < sides[1] else Change.BETTER
    return MetricComparison(
        task=pair.key.task,
        metric=pair.key.metric,
        scorer=pair.key.scorer,
        higher_is_better=pair.higher_is_better,
        n=len(paired),
        tied=int(tied.sum()),
        a=float(a.mean()),
        b=float(b.mean()),
        difference=float(paired.mean()),
        interval=_interval(pair, binary=binary),
        p_value=test[0],
        method=test[1],
        worse_p_value=sides[0],
        better_p_value=sides[1],
        smallest_detectable=smallest_detectable_loss(
            paired.tolist(), LOSS_ERROR_RATE / rows, POWER, binary=binary
        ),
        change=change,
    )


def _interval(pair: MetricPairs, *, binary: bool) -> Interval:
    """Return Tango's interval of the difference of right and wrong, else a bootstrap interval.

    If all graded scores are tied, a bootstrap interval has no width, as if the difference were
    known to be 0. For scores from 0 to 1, Tango's is then wide enough: the variance of a graded
    difference is at most that of a difference of -1, 0 or 1 with the same mean and mean size.
    """
    a, b = np.asarray(pair.a), np.asarray(pair.b)
    if not binary and (a == b).all() and a.min() >= 0 and a.max() <= 1:
        return paired_difference(PairedCounts(both=len(a), only_first=0, only_second=0, neither=0))
    if not binary:
        return bootstrap(b - a, seed=0)
    return paired_difference(
        PairedCounts(
            both=int((a * b).sum()),
            only_first=int((b > a).sum()),
            only_second=int((a > b).sum()),
            neither=int(((a == 0) & (b == 0)).sum()),
        )
    )
