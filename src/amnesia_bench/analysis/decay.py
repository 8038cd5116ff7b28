"""Exponential fits of curves over distance, with intervals from a bootstrap over texts.

Shapes: N texts, W resamplings, D distances.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.records.attention import BootstrapValue, DecayFit, DistanceCurve, Tail
from amnesia_bench.records.evaluation import Interval

Floats = NDArray[np.float64]
RESAMPLINGS = 1000
_LEVEL = 0.95
METHOD = "document_bootstrap"
# Minimum number of points for a fit.
MIN_DISTANCES = 3


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
    low, high = _ends(resamplings[:, None])
    interval = Interval(low=float(low[0]), high=float(high[0]), level=_LEVEL, method=METHOD)
    return BootstrapValue(value=float(value), interval=interval)


def fit_decay(curve: Resampled, *, by_precision: bool = False) -> DecayFit:
    """Fit a line to the logarithm of a curve and of each resampling (Eq. 16).

    Args:
        curve: a curve with positive values. In resamplings, values that are not positive are
            ignored.
        by_precision: weight each distance by the inverse variance of its logarithm (the squared
            ratio of value and standard error), for curves that decay into noise. Otherwise, all
            weights are equal.
    """
    x = curve.distances
    weight = np.ones_like(x)
    if by_precision and len(curve.resamplings):
        error = np.maximum(curve.resamplings.std(axis=0, ddof=1), np.finfo(float).tiny)
        weight = (curve.values / error) ** 2
        # Limit the weight of a distance at which the error is zero, since all texts agree exactly.
        weight = np.minimum(weight, 1e6 * np.median(weight))
    intercept, slope, r_squared = _line(x, np.log(curve.values), weight)
    rates = []
    for values in curve.resamplings:
        above = values > 0
        if above.sum() >= 2:
            rates.append(-_line(x[above], np.log(values[above]), weight[above])[1])
    return DecayFit(
        amplitude=float(np.exp(intercept)),
        rate=bootstrap_value(-slope, np.array(rates)),
        r_squared=r_squared,
        first=curve.first,
        last=curve.last,
    )


def describe_tail(curve: Resampled, *, by_precision: bool = False) -> Tail:
    """Fit both halves of a curve, and compare the far half with the extrapolated near half."""
    middle = (curve.first + curve.last) // 2
    near, far = curve.part(curve.first, middle), curve.part(middle + 1, curve.last)
    fit = fit_decay(near, by_precision=by_precision)

    def excess(near_values: Floats, far_values: Floats) -> float:
        above = near_values > 0
        line = _line(near.distances[above], np.log(near_values[above]), np.ones(int(above.sum())))
        return float(far_values.mean() / np.exp(line[0] + line[1] * far.distances).mean())

    pairs = zip(near.resamplings, far.resamplings, strict=True)
    replicates = np.array([excess(a, b) for a, b in pairs])
    return Tail(
        near=fit,
        far=fit_decay(far, by_precision=by_precision),
        excess=bootstrap_value(excess(near.values, far.values), replicates),
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

    The part ends before the first distance at which the lower end of the interval is not above 0;
    it is empty if this is the case at the peak. Before the peak, the curve does not decay: in
    prose, a token hardly ever follows itself.
    """
    peak = int(curve.values.argmax())
    low = _ends(curve.resamplings)[0][peak:]
    below = np.flatnonzero(low <= 0)
    length = int(below[0]) if len(below) else len(low)
    first = curve.first + peak
    return curve.part(first, first + length - 1)


def _ends(resamplings: Floats) -> tuple[Floats, Floats]:
    tail = 100 * (1 - _LEVEL) / 2
    low, high = np.percentile(resamplings, [tail, 100 - tail], axis=0)
    return low, high


def _line(x: Floats, y: Floats, weight: Floats) -> tuple[float, float, float]:
    """Return the intercept, slope and R squared of a weighted least-squares line."""
    share = weight / weight.sum()
    mean_x, mean_y = share @ x, share @ y
    spread = share @ (x - mean_x) ** 2
    slope = float(share @ ((x - mean_x) * (y - mean_y)) / spread)
    intercept = float(mean_y - slope * mean_x)
    residual = float(share @ (y - intercept - slope * x) ** 2)
    total = float(share @ (y - mean_y) ** 2)
    return intercept, slope, 1 - residual / total if total > 0 else 1.0
