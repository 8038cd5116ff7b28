"""Intervals and exact tests against published numbers, closed forms, brute force and simulation."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnesia_bench.statistics.intervals import (
    PairedCounts,
    clustered_mean,
    paired_difference,
    wilson,
)
from amnesia_bench.statistics.paired_tests import mcnemar_exact
from amnesia_bench.statistics.resampling import (
    Units,
    bootstrap_interval,
    randomisation_p_value,
    rank_correlation,
)


def counts(both: int, only_first: int, only_second: int, neither: int) -> PairedCounts:
    return PairedCounts(both=both, only_first=only_first, only_second=only_second, neither=neither)


def test_wilson_gives_the_interval_of_a_published_cell() -> None:
    found = wilson(416, 500)  # 83.2 %
    assert (round(found.low, 3), round(found.high, 3)) == (0.797, 0.862)
    assert (found.level, found.method) == (0.95, "wilson")


def test_wilson_ends_solve_its_own_equation() -> None:
    found = wilson(3, 20, 0.9)
    for end in (found.low, found.high):
        assert abs(3 / 20 - end) / math.sqrt(end * (1 - end) / 20) == pytest.approx(1.644853627)


def test_wilson_at_the_ends_is_neither_empty_nor_outside() -> None:
    none, every = wilson(0, 500), wilson(500, 500)
    assert none.low == 0
    assert every.high == 1
    assert none.high == pytest.approx(3.841459 / 503.841459)
    assert every.low == pytest.approx(1 - none.high)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (3, 2), (-1, 5)])
def test_impossible_counts_are_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(successes, n)


def test_clusters_of_one_are_plain_values() -> None:
    values = np.random.default_rng(0).random(30)
    mean, variance = clustered_mean([[value] for value in values])
    assert mean == pytest.approx(values.mean())
    assert variance == pytest.approx(values.var(ddof=1) / 30)


def test_clusters_of_equals_are_as_many_values_as_clusters() -> None:
    values = np.random.default_rng(1).random(30)
    single = clustered_mean([[value] for value in values])
    assert clustered_mean([[value] * 4 for value in values]) == pytest.approx(single)


def test_the_variance_of_a_clustered_mean_is_what_repeating_it_shows() -> None:
    random, means, variances = np.random.default_rng(2), [], []
    for _ in range(2000):
        sizes = random.integers(1, 5, 40)
        clusters = [(random.normal() + random.normal(size=size)).tolist() for size in sizes]
        mean, variance = clustered_mean(clusters)
        means.append(mean)
        variances.append(variance)
    assert np.mean(variances) == pytest.approx(np.var(means), rel=0.1)


def test_one_cluster_has_no_variance() -> None:
    with pytest.raises(ValueError, match="1 clusters"):
        clustered_mean([[1.0, 0.0]])


@pytest.mark.parametrize(
    ("b", "c", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (1, 5, 14 / 64)]
)
def test_mcnemar_is_the_two_sided_sign_test(b: int, c: int, p: float) -> None:
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b) == pytest.approx(p)


def test_mcnemar_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for b, c in [(7, 1), (40, 20), (3, 300), (251, 249)]:
        assert mcnemar_exact(b, c) == pytest.approx(stats.binomtest(b, b + c).pvalue)


def test_tango_gives_the_published_example() -> None:
    # Airway hyper-responsiveness before and after stem cell transplantation (Bentur et al. 2009),
    # as analysed in Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014).
    found = paired_difference(counts(1, 1, 7, 12))
    assert found.low == pytest.approx(-0.517, abs=5e-4)
    assert found.high == pytest.approx(-0.026, abs=5e-4)
    assert found.method == "tango"


def test_tango_without_a_discordant_prompt_is_not_a_point() -> None:
    z2 = 3.841459
    found = paired_difference(counts(300, 0, 0, 200))
    assert found.high == pytest.approx(z2 / (500 + z2), abs=1e-6)
    assert found.low == pytest.approx(-found.high)


sizes = st.integers(0, 300)


@given(sizes, sizes, sizes, sizes)
def test_tango_holds_the_observed_difference_and_turns_with_it(
    a: int, b: int, c: int, d: int
) -> None:
    if a + b + c + d == 0:
        return
    one, other = paired_difference(counts(a, b, c, d)), paired_difference(counts(a, c, b, d))
    assert -1 <= one.low <= (b - c) / (a + b + c + d) <= one.high <= 1
    assert one.low == pytest.approx(-other.high, abs=1e-9)


def test_tango_excludes_zero_exactly_when_mcnemars_score_test_does() -> None:
    # At a difference of 0 Tango's statistic is (b - c) / sqrt(b + c).
    for b in range(1, 60):
        for c in range(60):
            found = paired_difference(counts(100, b, c, 100))
            assert (found.low > 0) == ((b - c) / math.sqrt(b + c) > 1.959964)


@pytest.mark.parametrize("chances", [(0.8, 0.06, 0.06, 0.08), (0.3, 0.25, 0.05, 0.4)])
def test_tango_covers_the_truth_as_often_as_it_says(chances: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    truth = chances[1] - chances[2]
    hits = 0
    for drawn in rng.multinomial(200, chances, size=1000):
        found = paired_difference(counts(*map(int, drawn)))
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / 1000 <= 0.975


def test_rank_correlation_is_spearmans() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 99]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # With ties, by hand: ranks 0.5, 0.5, 2, 3 and 1, 0, 2, 3.
    assert rank_correlation([5, 5, 7, 8], [2, 1, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert math.isnan(rank_correlation([1, 1, 1], [1, 2, 3]))


def _difference(samples: Sequence[Units]) -> float:
    return float(samples[1].mean() - samples[0].mean())


def _mixed(samples: Sequence[Units], rng: np.random.Generator) -> Sequence[Units]:
    mixed = rng.permutation(np.concatenate(samples))
    return [mixed[: len(samples[0])], mixed[len(samples[0]) :]]


def test_the_randomisation_test_is_the_exact_one_up_to_the_draws() -> None:
    samples = [np.arange(4.0)[:, None], np.arange(4.0)[:, None] + 2.5]
    pool = np.concatenate(samples)[:, 0]
    differences = [
        pool[list(chosen)].mean() - np.delete(pool, list(chosen)).mean()
        for chosen in combinations(range(8), 4)
    ]
    exact = np.mean([abs(each) >= _difference(samples) - 1e-12 for each in differences])
    assert randomisation_p_value(samples, _difference, _mixed) == pytest.approx(exact, abs=0.02)
    assert randomisation_p_value([samples[0]] * 2, _difference, _mixed) == 1


def test_the_bootstrap_interval_has_the_width_of_the_normal_one() -> None:
    sample = np.random.default_rng(3).normal(size=(400, 1))
    interval = bootstrap_interval([sample], lambda samples: float(samples[0].mean()))
    assert interval is not None
    error = float(sample.std()) / 20
    assert interval.low == pytest.approx(sample.mean() - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(sample.mean() + 1.96 * error, abs=0.1 * error)
    assert bootstrap_interval([sample], lambda _: math.nan) is None
