"""Fits, tails and reaches of curves that are known."""

import numpy as np
import pytest

from amnesia_bench.analysis.decay import (
    Resampled,
    describe_tail,
    draw_weights,
    fit_decay,
    from_peak,
    reach_of,
    resample_ratio,
)

DISTANCES = np.arange(1, 101)


def _texts(curve, texts=40, noise=0.05, seed=0):
    """Sums of texts around a curve, each text larger or smaller as a whole and by distance."""
    rng = np.random.default_rng(seed)
    sums = curve * np.exp(noise * rng.standard_normal((texts, len(curve))))
    return resample_ratio(sums, np.ones_like(sums), draw_weights(texts, rng), first=1)


@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("rate", [0.2, 0.01])
def test_an_exponential_is_found_again(rate, noisy):
    fit = fit_decay(_texts(3 * np.exp(-rate * DISTANCES)), noisy=noisy)
    assert fit.rate.interval.low < rate < fit.rate.interval.high
    assert fit.amplitude == pytest.approx(3, rel=0.03)
    assert fit.r_squared > 0.99
    low, high = fit.scale_ends
    assert low < 1 / rate < high
    assert fit.at(50) == pytest.approx(3 * np.exp(-50 * rate), rel=0.05)


def test_a_curve_without_noise_is_fitted_exactly():
    curve = Resampled(5 * np.exp(-0.07 * DISTANCES), np.zeros((0, 100)), 1)
    fit = fit_decay(curve)
    assert fit.rate.value == pytest.approx(0.07, rel=1e-12)
    assert fit.amplitude == pytest.approx(5, rel=1e-12)
    assert fit.rate.interval is None
    assert fit.scale_ends is None
    assert describe_tail(curve).excess.value == pytest.approx(1, rel=1e-9)
    assert not describe_tail(curve).slower


def test_a_flat_tail_is_told_from_an_exponential():
    straight = describe_tail(_texts(np.exp(-0.05 * DISTANCES)))
    assert straight.excess.value == pytest.approx(1, abs=0.05)
    assert not straight.slower
    flat = describe_tail(_texts(np.exp(-0.1 * DISTANCES) + 0.02))
    assert flat.slower
    assert flat.excess.interval.low > 2
    assert flat.far.rate.value < 0.1 * flat.near.rate.value


@pytest.mark.parametrize("noisy", [True, False])
def test_the_excess_of_a_tail_is_that_over_the_fit_of_the_near_half(noisy):
    noise = np.where(DISTANCES < 10, 0.01, 0.3)  # so that equal weights would be another fit
    curve = _texts(np.exp(-0.1 * DISTANCES) + 0.02, noise=noise)
    tail, far = describe_tail(curve, noisy=noisy), curve.part(51, 100)
    extrapolated = np.mean([tail.near.at(distance) for distance in far.distances])
    assert tail.excess.value == pytest.approx(far.values.mean() / extrapolated)


def test_a_few_distances_at_zero_do_not_end_a_fit():
    """Three distances at 0 in a slow decay, as in essays."""
    curve = 0.01 * np.exp(-0.02 * DISTANCES)
    curve[8:11] = 0.0
    rng = np.random.default_rng(5)
    texts = curve + 0.002 * rng.standard_normal((200, 100))
    resampled = resample_ratio(texts, np.ones_like(texts), draw_weights(200, rng), first=1)
    part = from_peak(resampled)
    assert part.last > 90
    assert fit_decay(part, noisy=True).rate.value == pytest.approx(0.02, rel=0.2)


def test_a_noisy_fit_has_the_least_squared_error():
    from scipy.optimize import curve_fit

    rng = np.random.default_rng(2)
    values = 0.3 * np.exp(-0.15 * DISTANCES) + 0.01 * rng.standard_normal(100)
    fit = fit_decay(Resampled(values, np.zeros((0, 100)), 1), noisy=True)
    expected, _ = curve_fit(lambda d, a, r: a * np.exp(-r * d), DISTANCES, values, (1.0, 0.1))
    assert fit.amplitude == pytest.approx(expected[0], rel=1e-4)
    assert fit.rate.value == pytest.approx(expected[1], rel=1e-4)


def test_what_grows_has_no_scale():
    fit = fit_decay(_texts(np.exp(0.01 * DISTANCES)))
    assert fit.rate.value < 0
    assert fit.scale_tokens == float("inf")


def test_the_reach_is_the_distance_that_holds_the_mass():
    sums = np.array([[4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 10.0]])
    weights = np.array([[2.0, 0.0], [0.0, 2.0]])
    assert reach_of(sums, weights[:0], 0.5).value == 3  # 4, 7, 9, 20 of 20
    assert reach_of(sums, weights[:0], 0.45).value == 2
    assert reach_of(sums[:1], weights[:0, :1], 0.9).value == 2
    reach = reach_of(sums, weights, 0.5)
    assert reach.interval.low < 1.2
    assert reach.interval.high > 2.8


def test_the_stretch_from_the_peak_ends_where_noise_begins():
    values = np.array([-1.0, 0.5, 2.0, 1.0, 0.5, 0.0, 0.05, 0.3])
    resamplings = values + np.array([[-0.1], [0.1]]) * np.ones(8)
    found = from_peak(Resampled(values, resamplings, 1))
    assert (found.first, found.last) == (3, 5)
    empty = from_peak(Resampled(np.array([0.01, -0.2]), np.array([[-0.1, 0.1], [0.1, 0.0]]), 1))
    assert len(empty.values) == 0
