"""Exponential fits of curves by distance, and what resampling whole texts says of them.

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
# A line through fewer points is no fit.
MIN_DISTANCES = 3


@dataclass(frozen=True, eq=False)
class Resampled:
    """A curve [D], the same of each resampling [W, D], and the distance of its first value.

    W is 0 where there is a single text.
    """

    values: Floats
    resamplings: Floats
    first: int

    def part(self, first: int, last: int) -> Resampled:
        """Return distances `first` to `last`, both included."""
        piece = slice(first - self.first, last - self.first + 1)
        return Resampled(self.values[piece], self.resamplings[:, piece], first)

    @property
    def distances(self) -> Floats:
        """The distances [D]."""
        return self.first + np.arange(len(self.values), dtype=np.float64)

    @property
    def last(self) -> int:
        """The largest distance."""
        return self.first + len(self.values) - 1

    def curve(self) -> DistanceCurve:
        """Return the record of the curve."""
        low, high = _ends(self.resamplings) if len(self.resamplings) else (np.zeros(0),) * 2
        return DistanceCurve(
            first=self.first,
            mean=tuple(self.values.tolist()),
            low=tuple(low.tolist()),
            high=tuple(high.tolist()),
        )


def draw_weights(texts: int, rng: np.random.Generator) -> Floats:
    """Return how often each text is in each resampling [W, N]; none for a single text."""
    if texts < 2:
        return np.zeros((0, texts))
    return rng.multinomial(texts, np.full(texts, 1 / texts), size=RESAMPLINGS).astype(np.float64)


def resample_ratio(sums: Floats, counts: Floats, weights: Floats, first: int = 0) -> Resampled:
    """Return sums over counts by distance, of all texts and of each resampling.

    Args:
        sums: [N, D].
        counts: [N, D].
        weights: [W, N].
        first: the distance of the first column.
    """
    return Resampled(
        sums.sum(axis=0) / counts.sum(axis=0), (weights @ sums) / (weights @ counts), first
    )


def bootstrap_value(value: float, resamplings: Floats) -> BootstrapValue:
    """Return a value with the percentiles of its resamplings [W] as interval."""
    if not len(resamplings):
        return BootstrapValue(value=float(value), interval=None)
    low, high = _ends(resamplings[:, None])
    interval = Interval(low=float(low[0]), high=float(high[0]), level=_LEVEL, method=METHOD)
    return BootstrapValue(value=float(value), interval=interval)


def fit_decay(curve: Resampled, *, by_precision: bool = False) -> DecayFit:
    """Fit a line to the logarithms of a curve (Eq. 16), and to those of each resampling.

    Args:
        curve: values above zero. A resampling leaves out what is not.
        by_precision: weigh distances by the inverse variance of their logarithm (value over its
            standard error, squared): for curves that sink into noise. Else all count the same.
    """
    x = curve.distances
    weight = np.ones_like(x)
    if by_precision and len(curve.resamplings):
        error = np.maximum(curve.resamplings.std(axis=0, ddof=1), np.finfo(float).tiny)
        weight = (curve.values / error) ** 2
        # No distance decides alone: where all texts agree exactly, its error is zero.
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
    """Fit the two halves of a curve, and compare the far one with the near one continued."""
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
    """Return the smallest distance within which a share of all magnitude lies.

    Args:
        sums: magnitude by distance from 0, of each text [N, D].
        weights: [W, N].
        share: from 0 to 1.
    """

    def reach(totals: Floats) -> NDArray[np.intp]:
        cumulated = totals.cumsum(axis=-1)
        distance: NDArray[np.intp] = (cumulated < share * cumulated[..., -1:]).sum(axis=-1)
        return distance

    return bootstrap_value(float(reach(sums.sum(axis=0))), reach(weights @ sums).astype(np.float64))


def from_peak(curve: Resampled) -> Resampled:
    """Return the stretch that can be fitted: from the largest value on, as long as it is above 0.

    Above with the whole interval. What comes before the peak does not decay: in prose a token
    hardly ever follows itself. Empty where not even the peak is above zero.
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
    """Return intercept, slope and R squared of the weighted least squares."""
    share = weight / weight.sum()
    mean_x, mean_y = share @ x, share @ y
    spread = share @ (x - mean_x) ** 2
    slope = float(share @ ((x - mean_x) * (y - mean_y)) / spread)
    intercept = float(mean_y - slope * mean_x)
    left = float(share @ (y - intercept - slope * x) ** 2)
    whole = float(share @ (y - mean_y) ** 2)
    return intercept, slope, 1 - left / whole if whole > 0 else 1.0
