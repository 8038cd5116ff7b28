"""The output of `amnesia analyze`: reach of gradients and attention, autocorrelation of texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.evaluation import Interval


@dataclass(frozen=True, kw_only=True)
class BootstrapValue:
    """A value and its bootstrap interval, which is None for a single text or prompt."""

    value: float
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class DecayFit:
    """amplitude * exp(-rate * distance), fitted to the logarithms of a curve (Eq. 16).

    The fit covers distances `first` to `last`. `rate` is per token; a curve with a rate of 0 or
    less does not decay. `r_squared` is the explained share of the (weighted) variance of the
    logarithms.
    """

    amplitude: float
    rate: BootstrapValue
    r_squared: float
    first: int
    last: int

    @property
    def scale_tokens(self) -> float:
        """The distance over which the curve falls to 1/e; infinite if it does not fall."""
        return 1 / self.rate.value if self.rate.value > 0 else math.inf

    @property
    def scale_ends(self) -> tuple[float, float] | None:
        """The interval of `scale_tokens`: the reciprocals of the ends of the rate's interval."""
        if self.rate.interval is None:
            return None
        ends = (self.rate.interval.high, self.rate.interval.low)
        low, high = (1 / rate if rate > 0 else math.inf for rate in ends)
        return low, high

    def at(self, distance: float) -> float:
        """Return the fitted value at a distance in tokens."""
        return self.amplitude * math.exp(-self.rate.value * distance)


@dataclass(frozen=True, kw_only=True)
class Tail:
    """The far half of a curve compared with the extrapolation of its near half (Figure 7).

    `near` and `far` are fits of the two halves. `excess` is the mean of the far half divided by
    that of `near` extrapolated to it: 1 for an exponential, much larger for a flat tail.
    """

    near: DecayFit
    far: DecayFit
    excess: BootstrapValue

    @property
    def slower(self) -> bool:
        """Whether the far half decays more slowly than the near one: the intervals are disjoint."""
        near, far = self.near.rate.interval, self.far.rate.interval
        return near is not None and far is not None and far.high < near.low


@dataclass(frozen=True, kw_only=True)
class DistanceCurve:
    """A mean at each distance from `first` on, in tokens, with its 95 % bootstrap interval.

    `low` and `high` are empty for a single text.
    """

    first: int
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if {len(self.low), len(self.high)} not in ({len(self.mean)}, {0}):
            raise ValueError("a curve and its interval differ in length")


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The distances in tokens that contain half, and 90 %, of the total gradient magnitude."""

    half: BootstrapValue
    nine_tenths: BootstrapValue


@dataclass(frozen=True, kw_only=True)
class LayerGradients:
    """The mean over the heads of one layer, at each distance, and the reach of each head."""

    layer: int
    mean: tuple[float, ...]
    reach: Reach
    head_half_reach: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class GradientsByDistance:
    """|dL/ds| of the attention logits by distance (Definition 4.2, Eq. 15), on one source of data.

    L is the summed loss of the trained tokens of a text, in nats. The mean at a distance is over
    all visible pairs of all `n` texts, heads, and full softmax layers (all softmax layers if every
    one has a window). All texts have `tokens` tokens; `too_short` and `untrained` count skipped
    texts. Distances in `curve` and `layers` begin at 0; those of `fit` at 1.
    """

    source: str
    checkpoint: Parent
    data: Parent
    n: int
    tokens: int
    too_short: int
    untrained: int
    curve: DistanceCurve
    fit: DecayFit
    tail: Tail
    reach: Reach
    layers: tuple[LayerGradients, ...]
    settings: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class HeadReading:
    """The attention of one head, averaged over prompts.

    `distance` is the mean attention distance in tokens (Eq. 17), `entropy` the entropy of its
    weights over keys in nats; both are means over queries. `needle_mass` is the attention weight of
    the last query of a prompt on the needle, None without a needle.
    """

    layer: int
    head: int
    distance: float
    entropy: float
    needle_mass: float | None


@dataclass(frozen=True, kw_only=True)
class HeadDistances:
    """All heads of one checkpoint, on `n` prompts of `tokens` tokens (shortest, longest)."""

    role: str
    checkpoint: Parent
    inputs: Parent
    n: int
    tokens: tuple[int, ...]
    heads: tuple[HeadReading, ...]
    settings: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class HeadShift:
    """By how many tokens the mean attention distance of a head changed, on the same prompts."""

    layer: int
    head: int
    shift: BootstrapValue


@dataclass(frozen=True, kw_only=True)
class LayerShift:
    """The number of heads of a layer whose distance fell, and the mean shift of all its heads."""

    layer: int
    shortened: int
    heads: int
    mean_shift: float


@dataclass(frozen=True, kw_only=True)
class DistanceShift:
    """The change of attention distances from checkpoint `first` to `second`.

    `layers` are ranked as in the paper, by the number of heads whose distance fell; ties are broken
    by the larger fall.
    """

    first: str
    second: str
    n: int
    layers: tuple[LayerShift, ...]
    heads: tuple[HeadShift, ...]

    def most_shortened(self, count: int) -> tuple[tuple[int, int], ...]:
        """Return (layer, head) of the largest falls in the first layer of the ranking."""
        layer = self.layers[0].layer
        in_layer = (entry for entry in self.heads if entry.layer == layer)
        by_shift = sorted(in_layer, key=lambda entry: entry.shift.value)
        return tuple((entry.layer, entry.head) for entry in by_shift[:count])


@dataclass(frozen=True, kw_only=True)
class PooledAttention:
    """The weights of one head on one prompt, max-pooled to a square.

    Row r covers queries from r * tokens / len(rows), and likewise columns and keys; a row ends with
    its diagonal. `needle` has the position of the needle's first token and that after its last.
    """

    role: str
    checkpoint: Parent
    inputs: Parent
    layer: int
    head: int
    tokens: int
    needle: tuple[int, ...]
    rows: tuple[tuple[float, ...], ...]
    settings: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Autocorrelation:
    """How much likelier than by chance a token recurs, by distance (Appendix G).

    `reading` is "ratio_of_sums", (P[x_t = x_t+d] - chance) / (1 - chance) with `chance` the sum of
    squared token frequencies, or "mean_of_correlations", the mean over token types of the
    correlation of their indicators, weighted by frequency. `curve` begins at distance 1. `fit`
    starts at the peak of the curve and ends where its interval first includes zero; it is None for
    fewer than three distances. The `n` texts have `tokens` tokens in total; `too_short` counts
    skipped texts.
    """

    source: str
    data: Parent
    reading: str
    n: int
    tokens: int
    too_short: int
    chance: float
    curve: DistanceCurve
    fit: DecayFit | None
    tail: Tail | None
    settings: Mapping[str, str]
