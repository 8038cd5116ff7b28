"""Exponential fits of curves over distance, with intervals from a bootstrap over texts.

Shapes: N texts, W resamplings, D distances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.records.attention import BootstrapValue, DecayFit, DistanceCurve, Tail
from amnesia_bench.statistics.intervals import LEVEL
from amnesia_bench.statistics.resampling import percentile_interval

Floats = NDArray[np.float64]
RESAMPLINGS = 1000
METHOD = "document_bootstrap"
# Minimum number of points for a fit.
MIN_DISTANCES = 3
# Of the distances of a fitted part, the share at which the curve must be above 0.
_SHARE_ABOVE = 0.8
# Rates per token between which `_exponentials` interpolates; steps of 2 %, falling and growing.
_FALLING = np.geomspace(1e-5, 5.0, 660)
_RATES = np.concatenate([-_FALLING[_FALLING < 0.5][::-1], [0.0], _FALLING])


@dataclass(frozen=True, eq=False)
class Resampled:
    """A curve over distance, and the curve of each bootstrap resampling.

    `values` is [D], `resamplings` is [W, D], and `first` is the distance of the first column. W is
    0 for a single text.
    """

    values: Floats
    resamplings: Floats
    first: int

    def part(self, first: int, last: int) -> Resampled:
        """Return the part of the curve from distance `first` to `last`, inclusive."""
        part = slice(first - self.first, last - self.first + 1)
        return Resampled(self.values[part], self.resamplings[:, part], first)

    @property
    def distances(self) -> Floats:
        """The distance of each value [D]."""
        return self.first + np.arange(len(self.values), dtype=np.float64)

    @property
    def last(self) -> int:
        """The largest distance."""
        return self.first + len(self.values) - 1

    def curve(self) -> DistanceCurve:
        """Return the record of the curve and of its bootstrap intervals."""
        low, high = _ends(self.resamplings) if len(self.resamplings) else (np.zeros(0),) * 2
        return DistanceCurve(
            first=self.first,
            mean=tuple(self.values.tolist()),
            low=tuple(low.tolist()),
            high=tuple(high.tolist()),
        )


def draw_weights(texts: int, rng: np.random.Generator) -> Floats:
    """Return how often each text is drawn in each resampling [W, N]; W is 0 for a single text."""
    if texts < 2:
        return np.zeros((0, texts))
    return rng.multinomial(texts, np.full(texts, 1 / texts), size=RESAMPLINGS).astype(np.float64)


def resample_ratio(sums: Floats, counts: Floats, weights: Floats, first: int = 0) -> Resampled:
    """Return the total sum divided by the total count at each distance, with its resamplings.

    Args:
        sums: the sum of each text at each distance [N, D].
        counts: the count of each text at each distance [N, D].
        weights: the number of times each text is drawn in each resampling [W, N].
        first: the distance of the first column.
    """
    return Resampled(
        sums.sum(axis=0) / counts.sum(axis=0), (weights @ sums) / (weights @ counts), first
    )


def bootstrap_value(value: float, resamplings: Floats) -> BootstrapValue:
    """Return a value with the percentile interval from its resampled values [W]."""
    if not len(resamplings):
        return BootstrapValue(value=float(value), interval=None)
    return BootstrapValue(value=float(value), interval=percentile_interval(resamplings, METHOD))


def fit_decay(curve: Resampled, *, noisy: bool = False) -> DecayFit:
    """Fit an exponential to a curve and to each resampling (Eq. 16).

    Args:
        curve: a curve with positive values.
        noisy: whether the curve decays into noise, so that some values may not be positive. Instead
            of a line to the logarithms, the exponential with the least squared error is fitted;
            distances have the inverse of their variance as weight.
    """
    x, weight = curve.distances, _weights(curve, noisy)
    fit = _exponentials if noisy else _log_lines
    (amplitude,), (rate,) = fit(x, curve.values[None], weight)
    rates = fit(x, curve.resamplings, weight)[1]
    fitted, values = amplitude * np.exp(-rate * x), curve.values
    if not noisy:
        fitted, values = np.log(fitted), np.log(values)
    return DecayFit(
        amplitude=float(amplitude),
        rate=bootstrap_value(rate, rates[np.isfinite(rates)]),
        r_squared=_r_squared(values, fitted, weight),
        first=curve.first,
        last=curve.last,
    )


def describe_tail(curve: Resampled, *, noisy: bool = False) -> Tail:
    """Fit both halves of a curve, and compare the far half with the extrapolated near half."""
    middle = (curve.first + curve.last) // 2
    near, far = curve.part(curve.first, middle), curve.part(middle + 1, curve.last)
    fit = _exponentials if noisy else _log_lines

    def excesses(near_values: Floats, far_values: Floats) -> Floats:
        amplitude, rate = fit(near.distances, near_values, _weights(near, noisy))
        extrapolated = amplitude[:, None] * np.exp(-rate[:, None] * far.distances)
        ratios: Floats = far_values.mean(axis=1) / extrapolated.mean(axis=1)
        return ratios

    replicates = excesses(near.resamplings, far.resamplings)
    excess = float(excesses(near.values[None], far.values[None])[0])
    return Tail(
        near=fit_decay(near, noisy=noisy),
        far=fit_decay(far, noisy=noisy),
        excess=bootstrap_value(excess, replicates[np.isfinite(replicates)]),
    )


def reach_of(sums: Floats, weights: Floats, share: float) -> BootstrapValue:
    """Return the smallest distance within which pairs have a given share of the total magnitude.

    Args:
        sums: the magnitude of each text at distances 0, 1, 2, ... [N, D].
        weights: the number of times each text is drawn in each resampling [W, N].
        share: the share of the magnitude, from 0 to 1.
    """

    def reach(totals: Floats) -> NDArray[np.intp]:
        cumulative = totals.cumsum(axis=-1)
        distance: NDArray[np.intp] = (cumulative < share * cumulative[..., -1:]).sum(axis=-1)
        return distance

    return bootstrap_value(float(reach(sums.sum(axis=0))), reach(weights @ sums).astype(np.float64))


def from_peak(curve: Resampled) -> Resampled:
    """Return the part of a curve that can be fitted: from its peak as long as it is above 0.

    It is above 0 at a distance if the lower end of the interval is. The part ends with the last
    distance up to which this holds for four fifths of the distances: in real texts, a few distances
    fall out of a curve that goes on behind them. The part is empty if the curve is not above 0 at
    its peak. Before the peak, the curve does not decay: in prose, a token hardly ever follows
    itself.
    """
    peak = int(curve.values.argmax())
    above = _ends(curve.resamplings)[0][peak:] > 0
    share = np.cumsum(above) / np.arange(1, len(above) + 1)
    ends = np.flatnonzero(above & (share >= _SHARE_ABOVE)) if above[0] else np.zeros(0, np.int64)
    length = int(ends[-1]) + 1 if len(ends) else 0
    first = curve.first + peak
    return curve.part(first, first + length - 1)


def _ends(resamplings: Floats) -> tuple[Floats, Floats]:
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(resamplings, [tail, 100 - tail], axis=0)
    return low, high


def _weights(curve: Resampled, noisy: bool) -> Floats:
    """Return the weight of each distance [D]: the inverse variance of a noisy curve, else 1."""
    if not noisy or not len(curve.resamplings):
        return np.ones(len(curve.values))
    error = np.maximum(curve.resamplings.std(axis=0, ddof=1), np.finfo(float).tiny)
    # Limit the weight of a distance at which the error is zero, since all texts agree exactly.
    weight: Floats = np.minimum(1 / np.square(error / np.median(error)), 1e6)
    return weight


def _log_lines(x: Floats, values: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Return amplitude and rate [K] of a line to the logarithm of each row of `values` [K, D].

    Values that are not positive are ignored; with fewer than two others, the result is NaN.
    """
    above = values > 0
    share = above * weight
    with np.errstate(divide="ignore", invalid="ignore"):
        share = share / share.sum(axis=1, keepdims=True)
        y = np.log(np.where(above, values, 1.0))
        from_mean = x - (share @ x)[:, None]
        slope = (share * from_mean * y).sum(axis=1) / (share * from_mean**2).sum(axis=1)
        intercept = (share * y).sum(axis=1) - slope * (share @ x)
    enough = above.sum(axis=1) >= 2
    return np.where(enough, np.exp(intercept), np.nan), np.where(enough, -slope, np.nan)


def _exponentials(x: Floats, values: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Return amplitude and rate [K] of the exponential with the least weighted squared error.

    For a given rate, the best amplitude is a quotient of sums, and the error that it removes is
    `gain`. So only the rate is searched: on a grid, and between its points by a parabola. If a row
    has no positive gain, because its values are not above 0 on average, the result is NaN.
    """
    basis = np.exp(-_RATES[:, None] * (x - x[0]))  # [rates, D]
    norms = (basis**2) @ weight
    products = values @ (basis * weight).T  # [K, rates]
    gain = np.where(products > 0, products**2 / norms, 0.0)
    best = np.clip(gain.argmax(axis=1), 1, len(_RATES) - 2)
    rows = np.arange(len(values))
    left, middle, right = (gain[rows, best + step] for step in (-1, 0, 1))
    curvature = left - 2 * middle + right
    with np.errstate(divide="ignore", invalid="ignore"):
        between = np.where(curvature < 0, (left - right) / (2 * curvature), 0.0)
    rate = np.interp(best + np.clip(between, -1, 1), np.arange(len(_RATES)), _RATES)
    basis = np.exp(-rate[:, None] * (x - x[0]))  # [K, D]
    with np.errstate(divide="ignore", invalid="ignore"):
        amplitude = (values * basis) @ weight / ((basis**2) @ weight) * np.exp(rate * x[0])
    found = middle > 0
    return np.where(found, amplitude, np.nan), np.where(found, rate, np.nan)


def _r_squared(values: Floats, fitted: Floats, weight: Floats) -> float:
    """Return the weighted share of the variance of `values` [D] that a fit explains."""
    share = weight / weight.sum()
    residual = float(share @ (values - fitted) ** 2)
    total = float(share @ (values - share @ values) ** 2)
    return 1 - residual / total if total > 0 else 1.0
