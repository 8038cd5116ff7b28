"""The output of `amnesia analyze`: gradients and attention by distance, and autocorrelations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.evaluation import Interval


@dataclass(frozen=True, kw_only=True)
class BootstrapValue:
    """A value and its bootstrap interval, which is None if there is only one text or prompt."""

    value: float
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class DecayFit:
    """The fit of amplitude * exp(-rate * distance) to the logarithms of a curve (Eq. 16).

    The fit covers the distances from `first` to `last`. The unit of `rate` is 1/token; a curve with
    a rate of 0 or less does not decay. `r_squared` is the share of the (weighted) variance of the
    logarithms that the fit explains.
    """

    amplitude: float
    rate: BootstrapValue
    r_squared: float
    first: int
    last: int

    @property
    def scale_tokens(self) -> float:
        """The distance in tokens over which the fit falls to 1/e; infinite if it does not fall."""
        return 1 / self.rate.value if self.rate.value > 0 else math.inf

    @property
    def scale_ends(self) -> tuple[float, float] | None:
        """The interval of `scale_tokens`: the reciprocals of the bounds of the rate's interval."""
        if self.rate.interval is None:
            return None
        ends = (self.rate.interval.high, self.rate.interval.low)
        low, high = (1 / rate if rate > 0 else math.inf for rate in ends)
        return low, high

    def at(self, distance: float) -> float:
        """Return the value of the fit at a distance, in tokens."""
        return self.amplitude * math.exp(-self.rate.value * distance)


@dataclass(frozen=True, kw_only=True)
class Tail:
    """A comparison of the far half of a curve with the extrapolation of its near half (Figure 7).

    `near` and `far` are the fits of the two halves. `excess` is the mean of the curve over the far
    half, divided by the mean of `near` extrapolated to the same distances. It is 1 for an
    exponential curve, and much larger for a flat tail.
    """

    near: DecayFit
    far: DecayFit
    excess: BootstrapValue

    @property
    def slower(self) -> bool:
        """Whether the interval of the far half's rate is entirely below that of the near half."""
        near, far = self.near.rate.interval, self.far.rate.interval
        return near is not None and far is not None and far.high < near.low


@dataclass(frozen=True, kw_only=True)
class DistanceCurve:
    """The mean of a quantity at the distances `first`, `first` + 1, ... in tokens.

    `low` and `high` are the bounds of its 95 % bootstrap interval at each distance. They are empty
    if there is only one text.
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
    """The distances, in tokens, that cover half and 90 % of the total gradient magnitude."""

    half: BootstrapValue
    nine_tenths: BootstrapValue


@dataclass(frozen=True, kw_only=True)
class LayerGradients:
    """The mean |dL/ds| over the heads of one layer at each distance, and its reach.

    `reach` is that of all heads of the layer together. `head_half_reach` has, for each head, the
    distance in tokens that covers half of its total gradient magnitude.
    """

    layer: int
    mean: tuple[float, ...]
    reach: Reach
    head_half_reach: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class GradientsByDistance:
    """The mean |dL/ds| at each distance, where s are the attention logits (Def. 4.2, Eq. 15).

    L is the loss in nats, summed over the targets of a text, which are at the positions of the
    trained tokens of the source `targets_of`: text i has those of that source's text i. The mean at
    a distance is taken over all visible pairs of positions at that distance, in all `n` texts of
    one source of data, all heads, and all full softmax layers (all softmax layers if every one has
    a window). Each text has `tokens` tokens. `too_short` and `untrained` count the texts that were
    skipped for that reason. The distances of `curve` and `layers` begin at 0, those of `fit` and
    `tail` at 1. `text_half_reach` has, for each text, the distance that covers half of its gradient
    magnitude.
    """

    source: str
    checkpoint: Parent
    data: Parent
    n: int
    tokens: int
    too_short: int
    untrained: int
    targets_of: str
    curve: DistanceCurve
    fit: DecayFit
    tail: Tail
    reach: Reach
    text_half_reach: tuple[int, ...]
    layers: tuple[LayerGradients, ...]
    settings: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class HeadReading:
    """Statistics of the attention weights of one head, averaged over prompts.

    `distance` is the mean attention distance in tokens (Eq. 17), and `entropy` the entropy of the
    weights over keys, in nats; both are means over queries. `needle_mass` is the total attention
    weight of the prompt's last query on the tokens of the needle; None without a needle.
    """

    layer: int
    head: int
    distance: float
    entropy: float
    needle_mass: float | None


@dataclass(frozen=True, kw_only=True)
class HeadDistances:
    """The statistics of all softmax heads of one checkpoint on `n` prompts.

    `tokens` has the length of the shortest and of the longest prompt, in tokens.
    """

    role: str
    checkpoint: Parent
    inputs: Parent
    n: int
    tokens: tuple[int, ...]
    heads: tuple[HeadReading, ...]
    settings: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class HeadShift:
    """The change of a head's mean attention distance between two checkpoints, in tokens.

    `drift` is the relative change of its W_Q and W_K, |second - first| / |first|; None if they are
    not stored as rows of heads.
    """

    layer: int
    head: int
    shift: BootstrapValue
    drift: float | None


@dataclass(frozen=True, kw_only=True)
class LayerShift:
    """The change of attention distances in one layer; `mean_shift` is the mean over its heads.

    `shortened` of the `heads` heads have a shorter mean attention distance than before.
    """

    layer: int
    shortened: int
    heads: int
    mean_shift: float


@dataclass(frozen=True, kw_only=True)
class DistanceShift:
    """The change of attention distances from checkpoint `first` to checkpoint `second`.

    `layers` are ranked as in the paper, by the number of heads whose distance fell. Of layers with
    equal numbers, the one whose mean distance fell more comes first.
    """

    first: str
    second: str
    n: int
    layers: tuple[LayerShift, ...]
    heads: tuple[HeadShift, ...]

    def most_shortened(self, count: int) -> tuple[tuple[int, int], ...]:
        """Return (layer, head) of the `count` heads whose distance fell most in the top layer."""
        layer = self.layers[0].layer
        in_layer = (entry for entry in self.heads if entry.layer == layer)
        by_shift = sorted(in_layer, key=lambda entry: entry.shift.value)
        return tuple((entry.layer, entry.head) for entry in by_shift[:count])


@dataclass(frozen=True, kw_only=True)
class PooledAttention:
    """The attention weights of one head on one prompt, max-pooled to a lower triangular matrix.

    Row r begins at query r * tokens / len(rows), and column c at key c * tokens / len(rows). A row
    ends at the diagonal. `needle` is the half-open token range (begin, end) of the needle.
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
    """How much likelier than by chance a token recurs at each distance (Appendix G).

    `reading` names the definition of the curve. For "ratio_of_sums", the value at distance d is
    (P[x_t = x_(t+d)] - chance) / (1 - chance), where `chance` is the sum of the squared token
    frequencies. For "mean_of_correlations", it is the frequency-weighted mean over token types of
    the correlation of the indicators [x_t = v] and [x_(t+d) = v]. `curve` begins at distance 1.
    `fit` begins at the peak of the curve and ends where the interval of the curve first includes
    zero; it is None if it would cover fewer than three distances. `tokens` is the total length of
    the `n` texts. `too_short` counts the texts that were skipped as too short.
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


@dataclass(frozen=True, kw_only=True)
class FinetuneDivergence:
    """How far a fine-tune moved a model's predictions on texts, and its weights.

    `divergence` is KL(pre || post) in nats per token, the mean over the predictions of the `tokens`
    trained tokens of `n` texts. `weight_change` is |post - pre| / |pre| of all changed weights
    together, `routing_change` that of W_Q and W_K of the softmax layers.
    """

    source: str
    pre: Parent
    post: Parent
    data: Parent
    n: int
    tokens: int
    divergence: BootstrapValue
    weight_change: float
    routing_change: float
    settings: Mapping[str, str]
