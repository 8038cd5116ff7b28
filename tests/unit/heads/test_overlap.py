"""The overlap of retrieval scores and drift, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from amnesia_bench.heads.overlap import THRESHOLD, drift_overlap
from amnesia_bench.records.head_ranking import HeadScore
from amnesia_bench.statistics.intervals import wilson


def _heads(scores, drifts, group=1):
    return [
        HeadScore(
            layer=0, head=i, kv_head=i // group, score=float(score),
            interval=wilson(score, 1), drift_q=drift, drift_k=drifts[i // group * group],
        )
        for i, (score, drift) in enumerate(zip(scores, drifts, strict=True))
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_correlation_and_chance_are_those_of_scipy(seed):
    rng = np.random.default_rng(seed)
    scores = rng.choice([0, 0, 0, 0.2, 0.5, 0.9], 40)
    drifts = (rng.normal(size=40) + 2 * scores).round(1).tolist()  # with ties in both
    for role, group in (("q", 1), ("k", 2)):
        overlap = drift_overlap(_heads(scores, drifts, group), role)
        units = scores.reshape(-1, group).max(axis=1)  # of the heads that share a drift
        expected = stats.spearmanr(units, drifts[::group]).statistic
        assert overlap.correlation == pytest.approx(expected)
        assert overlap.interval.low < overlap.correlation < overlap.interval.high
        assert overlap.n == len(units) == 40 // group
        assert overlap.top == (units >= THRESHOLD).sum()
        assert overlap.expected == pytest.approx(overlap.top**2 / len(units))
        chance = stats.hypergeom(len(units), overlap.top, overlap.top)
        assert chance.mean() == pytest.approx(overlap.expected)
        assert overlap.p_value == pytest.approx(chance.sf(np.floor(overlap.common) - 1))


def test_the_interval_covers_the_correlation_of_the_population():
    """Of normal variables with Pearson's r, Spearman's is 6/pi asin(r/2)."""
    rng = np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)
    covered = 0
    for _ in range(30):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=60).T
        interval = drift_overlap(_heads(stats.norm.cdf(x), y.tolist()), "q").interval
        covered += interval.low <= truth <= interval.high
    assert covered >= 25  # at 95 % coverage, fewer have a probability of 0.3 %


def test_heads_that_share_a_kv_head_are_one_unit_of_its_drift():
    """Scores of a group are alike and its drift is one, so four heads tell as much as one."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(30):
        alike = np.repeat(rng.standard_normal(24), 4) + 0.5 * rng.standard_normal(96)
        drifts = np.repeat(rng.standard_normal(24), 4).tolist()
        interval = drift_overlap(_heads(0.3 * stats.norm.cdf(alike), drifts, 4), "k").interval
        covered += interval.low <= 0 <= interval.high
    assert covered >= 25


def test_heads_of_equal_drift_count_in_equal_parts():
    scores = [0.9, 0.8, 0, 0, 0, 0]
    assert drift_overlap(_heads(scores, [5.0, 4, 3, 2, 1, 0]), "q").common == 2
    assert drift_overlap(_heads(scores, [5.0, 1, 1, 1, 1, 1]), "q").common == pytest.approx(1.2)
    tied = drift_overlap(_heads(scores, [1.0] * 6), "q")
    assert tied.common == tied.expected == pytest.approx(2 / 3)
    assert tied.p_value == 1
    assert tied.correlation is tied.interval is None


def test_no_or_only_retrieval_heads_have_no_overlap():
    for scores in ([0.0, 0.05, 0.02], [0.5, 0.6, 0.7]):
        overlap = drift_overlap(_heads(scores, [1.0, 2.0, 3.0]), "q")
        assert overlap.common is overlap.expected is overlap.p_value is None
        assert overlap.correlation is not None


def test_heads_without_drift_are_left_out():
    heads = _heads([0.9, 0.1, 0.0], [1.0, None, 2.0])
    assert drift_overlap(heads, "q").n == 2
    assert drift_overlap(_heads([0.9, 0.1], [None, None]), "q") is None
