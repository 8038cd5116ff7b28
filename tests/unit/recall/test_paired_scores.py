"""Scores that are fractions: the exact sign-flip test, alone and in the sequential rule."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from amnesia_bench.recall.paired_scores import PairedScores
from amnesia_bench.recall.sequential import judge, looks
from amnesia_bench.records.recall import CheckVerdict, Rule
from amnesia_bench.statistics.intervals import PairedCounts, paired_difference
from amnesia_bench.statistics.paired_tests import mcnemar_exact

RULE = Rule(samples=50, margin=0.0, error_rate=0.025)


def test_scores_of_all_values_or_none_are_counts() -> None:
    first, second = [1, 1, 1, 0, 0, 1, 0], [1, 0, 0, 1, 0, 0, 0]
    scores = PairedScores.of(first, second)
    assert (scores.only_first, scores.only_second, scores.unit) == (3, 1, 1)
    assert scores.p_value() == pytest.approx(mcnemar_exact(3, 1))
    counts = PairedCounts(both=1, only_first=3, only_second=1, neither=2)
    assert paired_difference(scores.counts()) == paired_difference(counts)
    assert PairedScores.of_counts(counts).p_value() == scores.p_value()


def test_the_p_value_is_that_of_all_sign_patterns() -> None:
    first, second = [1.0, 0.75, 2 / 3, 0.5, 0.2, 1.0], [0.25, 1.0, 1 / 3, 0.5, 0.0, 0.4]
    differences = [
        Fraction(a).limit_denominator(60) - Fraction(b).limit_denominator(60)
        for a, b in zip(first, second, strict=True)
    ]
    observed = abs(sum(differences))
    patterns = list(itertools.product((1, -1), repeat=6))
    extreme = sum(
        abs(sum(sign * d for sign, d in zip(signs, differences, strict=True))) >= observed
        for signs in patterns
    )
    scores = PairedScores.of(first, second)
    assert scores.unit == 60
    assert scores.p_value() == pytest.approx(extreme / len(patterns))


def test_the_interval_of_fractions_contains_that_of_their_own_variance() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 5, (2, 400)) / 4
    scores = PairedScores.of(first.tolist(), second.tolist())
    interval = paired_difference(scores.counts())
    half = 1.96 * (first - second).std(ddof=1) / math.sqrt(400)
    assert interval.low < scores.difference - half
    assert interval.high > scores.difference + half


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1.0], [1.0, 0.5], "1 and 2 scores"),
        ([1.5], [1.0], "score 1.5"),
        ([-0.25], [1.0], "score -0.25"),
        ([math.nan], [1.0], "score nan"),
        ([math.pi / 4], [1.0], "share of at most"),
    ],
)
def test_scores_that_cannot_be_paired_are_refused(
    first: list[float], second: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PairedScores.of(first, second)


def test_ties_everywhere_are_no_regression_once_a_drop_is_ruled_out() -> None:
    rule = Rule(samples=500, margin=0.0, error_rate=0.025)
    history = [PairedScores.of([0.75] * look, [0.75] * look) for look in looks(500)]
    verdicts = [judge(history[: k + 1], rule, 1) for k in range(len(history))]
    assert verdicts[0] is CheckVerdict.UNDECIDED
    assert verdicts[-1] is CheckVerdict.NO_REGRESSION
    assert history[-1].p_value() == 1


def test_counts_and_scores_of_0_and_1_get_the_same_verdicts() -> None:
    rng = np.random.default_rng(5)
    rule = Rule(samples=500, margin=0.0, error_rate=0.025)
    for loss in (0.0, 0.04, 0.1, 0.3):
        for _ in range(5):
            first = rng.random(500) < 0.8
            second = first & (rng.random(500) > loss) | (rng.random(500) < 0.02)
            scores, counts = [], []
            for look in looks(500):
                a, b = first[:look].astype(float), second[:look].astype(float)
                scores.append(PairedScores.of(a.tolist(), b.tolist()))
                pairs = list(zip(a, b, strict=True))
                counts.append(
                    PairedCounts(
                        both=pairs.count((1, 1)),
                        only_first=pairs.count((1, 0)),
                        only_second=pairs.count((0, 1)),
                        neither=pairs.count((0, 0)),
                    )
                )
                assert judge(scores, rule, 3) is judge(counts, rule, 3)


def test_the_error_rate_is_exact_over_all_signs_at_two_looks() -> None:
    """Sizes 1 and 3 quarters; given them, the sums at the looks have 26^4 outcomes."""
    sizes = [0.25] * 15 + [0.75] * 10
    binomial = {n: [math.comb(n, k) / 2**n for k in range(n + 1)] for n in (15, 10)}
    chance: dict[int, float] = {}
    for small, large in itertools.product(range(16), range(11)):
        total = small + 3 * large
        chance[total] = chance.get(total, 0.0) + binomial[15][small] * binomial[10][large]
    witness: dict[int, tuple[int, int]] = {}
    for small, large in itertools.product(range(16), range(11)):
        witness.setdefault(small + 3 * large, (small, large))

    def scores(parts: list[tuple[int, int]]) -> PairedScores:
        steps = []
        for small, large in parts:
            lost = [0.25] * small + [0.75] * large
            won = [0.25] * (15 - small) + [0.75] * (10 - large)
            steps += [(d, 0.0) for d in lost] + [(0.0, d) for d in won]
        return PairedScores.of([a for a, _ in steps], [b for _, b in steps])

    assert len(sizes) == 25
    alarms = 0.0
    for first, p in chance.items():
        at_first = scores([witness[first]])
        if judge([at_first], RULE, 1) is CheckVerdict.REGRESSION:
            alarms += p
            continue
        for second, q in chance.items():
            history = [at_first, scores([witness[first], witness[second]])]
            alarms += p * q * (judge(history, RULE, 1) is CheckVerdict.REGRESSION)
    assert 0.015 < alarms <= 0.025


def test_false_alarms_of_equally_good_models_stay_below_the_error_rate() -> None:
    """Both models' scores come from one distribution, which need not be symmetric."""
    rng = np.random.default_rng(6)
    rule = Rule(samples=100, margin=0.0, error_rate=0.05)
    trials, alarms = 400, 0
    for _ in range(trials):
        first, second = rng.choice([0, 0.25, 0.5, 1], p=[0.1, 0.2, 0.1, 0.6], size=(2, 100))
        history = []
        for look in looks(100):
            history.append(PairedScores.of(first[:look].tolist(), second[:look].tolist()))
            if judge(history, rule, 1) is CheckVerdict.REGRESSION:
                alarms += 1
                break
    # 5 % and three standard errors.
    assert alarms / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_a_partial_loss_is_found_although_few_answers_lose_everything() -> None:
    rng = np.random.default_rng(7)
    rule = Rule(samples=500, margin=0.0, error_rate=0.025)
    first = np.ones(500)
    second = 1 - 0.25 * (rng.random(500) < 0.5)
    history = []
    for look in looks(500):
        history.append(PairedScores.of(first[:look].tolist(), second[:look].tolist()))
        if (verdict := judge(history, rule, 11)) is not CheckVerdict.UNDECIDED:
            break
    assert verdict is CheckVerdict.REGRESSION
    assert history[-1].n <= 50
