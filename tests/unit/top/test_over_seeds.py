"""Tests and intervals over seeds: against enumeration and formulas, and by simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnesia_bench.errors import UserError
from amnesia_bench.statistics.over_seeds import (
    ALPHA,
    BOOTSTRAP_METHOD,
    bootstrap_means,
    sign_flip_over_seeds,
    smallest_p_value,
)
from amnesia_bench.statistics.paired_tests import sign_flip_p_value
from amnesia_bench.statistics.resampling import percentile_interval

Seeds = list[dict[tuple[int, int], float]]


def answers(rng: np.random.Generator, means: np.ndarray, prompts: int, *, shared: bool) -> Seeds:
    """Return right and wrong answers of seeds with these means; half of the luck is the prompt's.

    Args:
        rng: the source of luck.
        means: the chance of a right answer in each seed.
        prompts: number of prompts of each seed.
        shared: whether all seeds have the same prompts.
    """
    # Uniform numbers, of which those of one prompt are alike in half of the cases.
    luck = rng.random((len(means), prompts))
    if shared:
        luck = np.where(rng.random(luck.shape) < 0.5, rng.random(prompts), luck)
    right = luck < means[:, None]
    return [
        {(0 if shared else i, doc): float(value) for doc, value in enumerate(row)}
        for i, row in enumerate(right)
    ]


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=9))
def test_the_test_over_seeds_counts_sign_patterns(differences: list[int]) -> None:
    sums = [
        sum(sign * abs(value) for sign, value in zip(signs, differences, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    as_far = sum(abs(total) >= abs(sum(differences)) for total in sums)
    found = sign_flip_over_seeds([value / 72 for value in differences])
    assert found == pytest.approx(as_far / len(sums))
    assert found == pytest.approx(sign_flip_p_value(differences))


def test_few_seeds_cannot_be_significant_and_many_are_counted_exactly() -> None:
    for seeds in range(1, 11):
        alike = sign_flip_over_seeds([0.2 + 0.01 * i for i in range(seeds)])
        assert alike == pytest.approx(smallest_p_value(seeds))
        assert (alike < ALPHA) == (seeds >= 6)
    assert sign_flip_over_seeds([0.0, 0.0, 0.0]) == 1
    assert sign_flip_over_seeds([0.1, -0.1]) == 1
    assert sign_flip_over_seeds([1.0] * 30 + [-1.0]) == pytest.approx(2 * 32 / 2**31)
    with pytest.raises(UserError, match="41 seeds"):
        sign_flip_over_seeds([1.0] * 41)


@pytest.mark.parametrize("seeds", [3, 6, 10])
def test_the_test_over_seeds_errs_no_more_often_than_it_says(seeds: int) -> None:
    rng, runs = np.random.default_rng(seeds), 2000
    # Neither normal nor alike: each seed's luck has a scale of its own.
    differences = rng.laplace(size=(runs, seeds)) * rng.uniform(0.1, 3, size=seeds)
    errors = np.mean([sign_flip_over_seeds(list(row)) < ALPHA for row in differences])
    assert errors <= ALPHA + 0.01
    if seeds < 6:
        assert errors == 0
    else:
        assert errors > 0.02


@pytest.mark.parametrize("shared", [False, True])
def test_the_spread_of_the_bootstrap_follows_from_its_two_levels(shared: bool) -> None:
    rng, count, prompts = np.random.default_rng(7), 6, 50
    seeds = answers(rng, rng.uniform(0.2, 0.9, count), prompts, shared=shared)
    table = np.array([list(seed.values()) for seed in seeds])
    draws = bootstrap_means(seeds)
    between = table.mean(axis=1).var(ddof=1) / count
    if shared:
        # One resample of the prompts for all seeds: the spread of the prompts' means, and of what
        # is left in each seed without them.
        residue = table - table.mean(axis=0)
        within = (table.mean(axis=0).var() + residue.var(axis=1).mean() / (count - 1)) / prompts
    else:
        within = table.var(axis=1).mean() / prompts / (count - 1)
    assert draws.mean() == pytest.approx(table.mean(), abs=0.005)
    assert draws.var() == pytest.approx(between + within, rel=0.08)


def test_the_same_answers_give_the_same_interval_and_streams_share_only_the_seeds() -> None:
    rng = np.random.default_rng(1)
    seeds = answers(rng, np.array([0.3, 0.9]), 40, shared=False)
    assert np.array_equal(bootstrap_means(seeds), bootstrap_means(seeds))
    other = bootstrap_means(seeds, stream=1)
    assert not np.array_equal(bootstrap_means(seeds), other)
    # The two seeds differ by far more than their prompts, so that streams agree on the seeds.
    assert np.corrcoef(bootstrap_means(seeds), other)[0, 1] > 0.8


def test_prompts_that_only_some_seeds_answered() -> None:
    whole = {(0, doc): 1.0 for doc in range(30)}
    draws = bootstrap_means([whole, {(0, 0): 0.0}])
    assert np.isfinite(draws).all()
    assert draws.mean() == pytest.approx(0.5, abs=0.03)


# docs/benchmarks.md has the coverage for more designs and runs (scripts/bench_seed_intervals.py).
@pytest.mark.parametrize(("seeds", "spread"), [(5, 0.2), (10, 0.2), (10, 0.05)])
def test_coverage_for_normal_seed_effects(seeds: int, spread: float) -> None:
    rng, runs, hits = np.random.default_rng(0), 100, 0
    for _ in range(runs):
        means = np.clip(0.5 + spread * rng.normal(size=seeds), 0, 1)
        interval = percentile_interval(
            bootstrap_means(answers(rng, means, 40, shared=True)), BOOTSTRAP_METHOD
        )
        hits += interval.low <= 0.5 <= interval.high
    assert hits / runs >= 0.86
