"""Tests of paired scores, against enumeration, simulation and scipy."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from amnesia_bench.statistics.paired_tests import (
    enumerated_sign_flip,
    holm,
    mcnemar_exact,
    paired_permutation_p_value,
    sign_flip_p_value,
)
from amnesia_bench.statistics.power import sign_test_power, smallest_detectable_loss


def by_enumeration(steps: Sequence[int]) -> float:
    observed = abs(sum(steps))
    sums = [
        sum(sign * step for sign, step in zip(signs, steps, strict=True))
        for signs in itertools.product((1, -1), repeat=len(steps))
    ]
    return sum(abs(each) >= observed for each in sums) / len(sums)


PAIRS = st.lists(st.tuples(st.integers(0, 16), st.integers(0, 16)), min_size=1, max_size=9)


@given(PAIRS)
@settings(deadline=None)
def test_the_sign_flip_test_counts_every_pattern_of_signs(pairs: list[tuple[int, int]]) -> None:
    steps = [a - b for a, b in pairs]
    expected = by_enumeration(steps)
    assert sign_flip_p_value(steps) == pytest.approx(expected)
    assert sign_flip_p_value([-step for step in steps]) == pytest.approx(expected)
    assert enumerated_sign_flip([step / 72 for step in steps]) == pytest.approx(expected)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 20))
@settings(deadline=None)
def test_of_right_and_wrong_it_is_mcnemars_exact_test(ahead: int, behind: int, same: int) -> None:
    steps = [1] * ahead + [-1] * behind + [0] * same
    assert sign_flip_p_value(steps) == pytest.approx(mcnemar_exact(ahead, behind))


@given(PAIRS)
@settings(deadline=None, max_examples=30)
def test_scores_off_every_grid_are_tested_like_those_on_one(pairs: list[tuple[int, int]]) -> None:
    first, second = ([pair[i] / 16 * np.pi for pair in pairs] for i in range(2))
    p_value, method = paired_permutation_p_value(first, second)
    assert p_value == pytest.approx(by_enumeration([a - b for a, b in pairs]))
    assert method == ("mcnemar_exact" if first == second else "sign_flip_exact")


def test_scipy_draws_the_same_p_value_for_graded_scores() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.beta(2, 3, 60), generator.beta(2, 2.4, 60)
    p_value, method = paired_permutation_p_value(first.tolist(), second.tolist())
    drawn = stats.permutation_test(
        (first, second),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        rng=np.random.default_rng(1),
    ).pvalue
    # Two draws, of 100,000 and 20,000 patterns, whose difference has a standard error below 0.004.
    assert method == "sign_flip_drawn"
    assert p_value == pytest.approx(drawn, abs=0.015)


def test_a_benchmark_of_right_and_wrong_is_tested_in_full() -> None:
    generator = np.random.default_rng(2)
    first, second = generator.integers(0, 2, (2, 3_000)).astype(float)
    p_value, method = paired_permutation_p_value(first.tolist(), second.tolist())
    lost, won = int((first > second).sum()), int((second > first).sum())
    assert method == "mcnemar_exact"
    assert p_value == pytest.approx(stats.binomtest(lost, lost + won).pvalue)


def test_rounding_errors_are_no_differences() -> None:
    third = [0.1 + 0.2, 0.3, 1.0]
    assert paired_permutation_p_value(third, [0.3, 0.3, 1.0]) == (1.0, "mcnemar_exact")


def test_holm_adjusts_like_the_textbook() -> None:
    # The values are those of p.adjust with method = "holm" in R.
    adjusted = holm([0.01, 0.04, 0.03, 0.005, 0.9])
    assert adjusted == pytest.approx((0.04, 0.09, 0.09, 0.025, 0.9))
    assert holm([]) == ()


@pytest.mark.parametrize(
    ("n", "lost", "won"), [(40, 0.3, 0.1), (200, 0.08, 0.03), (1319, 0.1, 0.1)]
)
def test_the_power_is_that_of_repeated_experiments(n: int, lost: float, won: float) -> None:
    draws = np.random.default_rng(3).multinomial(n, [lost, won, 1 - lost - won], 20_000)
    tails = stats.binom.sf(draws[:, 0] - 1, draws[:, 0] + draws[:, 1], 0.5)
    rejected = (tails <= 0.025).mean()
    assert sign_test_power(n, lost, won, 0.025) == pytest.approx(rejected, abs=0.015)


@pytest.mark.parametrize(("n", "ties"), [(100, 100), (500, 440), (25, 20)])
def test_the_smallest_detectable_loss_is_detected_as_often_as_stated(n: int, ties: int) -> None:
    paired = [0.0] * ties + [1.0, -1.0] * ((n - ties) // 2) + [1.0] * ((n - ties) % 2)
    loss = smallest_detectable_loss(paired, 0.025, 0.8, binary=True)
    assert loss is not None
    total = max(loss, (n - ties) / n)
    power = sign_test_power(n, (total + loss) / 2, (total - loss) / 2, 0.025)
    assert power == pytest.approx(0.8, abs=0.01)
    # Differences of a half instead of 1.
    graded = smallest_detectable_loss([x / 2 for x in paired], 0.025, 0.8, binary=False)
    assert graded is None if ties == n else graded == pytest.approx(loss / 2)


def test_five_pairs_detect_nothing() -> None:
    assert smallest_detectable_loss([1.0] * 5, 0.025, 0.8, binary=True) is None
    assert smallest_detectable_loss([1.0] * 6, 0.025, 0.8, binary=True) is not None
