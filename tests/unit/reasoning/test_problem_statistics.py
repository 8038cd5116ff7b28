"""Avg@k, Maj@k, pass@k, and their errors, against calculations made another way."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amnesia_bench.reasoning.problem_statistics import (
    average,
    majority,
    majority_expected,
    mean_estimate,
    pass_at,
)
from amnesia_bench.statistics.intervals import wilson
from amnesia_bench.statistics.resampling import bootstrap

RIGHT = 0  # the class that is right in generated votes
CLASSES = st.none() | st.integers(0, 4)
VOTES = st.lists(CLASSES, min_size=1, max_size=16)


def correct_of(votes: Sequence[int | None]) -> list[bool]:
    return [vote == RIGHT for vote in votes]


# -- one problem -----------------------------------------------------------------------------


@given(VOTES)
def test_average_is_the_share_of_right_answers(votes: list[int | None]) -> None:
    assert average(correct_of(votes)) == votes.count(RIGHT) / len(votes)


@given(VOTES)
def test_majority_is_the_first_seen_of_the_most_frequent(votes: list[int | None]) -> None:
    # By sorting: most votes first, then the smallest position of the first vote.
    ranked = sorted(
        {vote for vote in votes if vote is not None},
        key=lambda vote: (-votes.count(vote), votes.index(vote)),
    )
    expected = 1.0 if ranked and ranked[0] == RIGHT else 0.0
    assert majority(correct_of(votes), votes) == expected


@given(VOTES)
def test_majority_expected_is_the_mean_over_random_tie_breaks(votes: list[int | None]) -> None:
    answered = [vote for vote in votes if vote is not None]
    modes = {
        vote for vote in answered if answered.count(vote) == max(map(answered.count, answered))
    }
    expected = (RIGHT in modes) / len(modes) if modes else 0.0
    assert majority_expected(correct_of(votes), votes) == pytest.approx(expected)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_ties_by_first_seen_are_unbiased_over_the_orders(votes: list[int]) -> None:
    orders = list(itertools.permutations(votes))
    mean = sum(majority(correct_of(order), order) for order in orders) / len(orders)
    assert mean == pytest.approx(majority_expected(correct_of(votes), votes))


def test_majority_without_votes_is_wrong_and_of_one_answer_is_the_answer() -> None:
    assert majority([False] * 4, [None] * 4) == 0.0
    assert majority_expected([False] * 4, [None] * 4) == 0.0
    assert majority([True], [0]) == 1.0
    assert majority([False], [0]) == 0.0


def test_missing_answers_do_not_outvote_a_right_one() -> None:
    assert majority([False] * 15 + [True], [None] * 15 + [0]) == 1.0


def test_a_class_is_as_right_as_its_first_answer() -> None:
    # Equivalence is not transitive: a class may hold answers with other verdicts.
    assert majority([True, False, False], [0, 0, 1]) == 1.0
    assert majority([False, True, False], [0, 0, 1]) == 0.0


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(
    correct: list[bool], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(correct)))
    subsets = list(itertools.combinations(correct, k))
    assert pass_at(correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert pass_at(correct, 1) == pytest.approx(average(correct))


@pytest.mark.parametrize("k", [0, 4])
def test_pass_at_more_than_there_is_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="of 3 answers"):
        pass_at([True, False, True], k)


# -- all problems ----------------------------------------------------------------------------


@given(st.lists(st.integers(0, 16), min_size=2, max_size=50))
@settings(deadline=None, max_examples=20)
def test_value_and_standard_error_are_over_problems(counts: list[int]) -> None:
    values = [count / 16 for count in counts]
    found = mean_estimate(values)
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    assert found.n == len(values)
    assert found.value == pytest.approx(mean)
    assert found.stderr == pytest.approx(math.sqrt(variance / len(values)), abs=1e-12)
    assert found.interval.low - 1e-12 <= found.value <= found.interval.high + 1e-12
    assert mean_estimate(values) == found


def test_right_or_wrong_gets_wilsons_interval_and_shares_the_bootstraps() -> None:
    assert mean_estimate([1.0, 0.0, 1.0]).interval == wilson(2, 3)
    assert mean_estimate([1.0, 0.5, 1.0]).interval.method == "cluster_bootstrap"
    assert mean_estimate([0.0] * 30).interval == wilson(0, 30)
    assert mean_estimate([1.0]).stderr is None
    with pytest.raises(ValueError, match="no problems"):
        mean_estimate([])


def test_the_bootstrap_interval_is_that_of_the_exact_distribution() -> None:
    # All 3^3 resamples of three problems, in place of drawn ones.
    values = [0.0, 0.25, 1.0]
    means = np.array([np.mean(drawn) for drawn in itertools.product(values, repeat=3)])
    found = bootstrap(np.array(values), seed=0)
    for bound in (found.low, found.high):
        assert np.abs(means - bound).min() < 1e-9
    inside = ((means >= found.low) & (means <= found.high)).mean()
    assert inside >= 0.95


def test_the_bootstrap_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for seed in range(100):
        chances = generator.beta(2, 2, size=100)
        values = generator.binomial(16, chances) / 16
        interval = bootstrap(values, seed=seed)
        covered += interval.low <= 0.5 <= interval.high
    # Binomial(100, 0.95): below 87 once in a thousand.
    assert covered >= 87
