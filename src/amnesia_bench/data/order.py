"""The order of training sequences: a pure function of the sample index, with no state to save.

A mixture cycles through its sources in a fixed pattern, and every epoch of a source has a different
random permutation. The order does not depend on the number of processes, which only divide the
sample indices among themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from amnesia_bench.errors import UserError

# Weights are rounded to multiples of 1/_PERIOD, so the pattern of sources repeats after at most
# _PERIOD samples.
_PERIOD = 10_000
_ROUNDS = 4
_MASK64 = (1 << 64) - 1


class SampleOrder:
    """An endless order over the sequences of one or more sources.

    Args:
        sizes: the number of sequences of each source.
        weights: the weight of each source in the mixture, in any unit; weights are rounded to
            1/10,000 of their sum (see `shares`).
        seed: the seed of the permutations.

    Raises:
        UserError: a size or weight is not positive, or a weight rounds to 0.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], seed: int) -> None:
        if not sizes or len(sizes) != len(weights):
            raise UserError(f"{len(sizes)} sources and {len(weights)} weights")
        if any(size < 1 for size in sizes):
            raise UserError(f"sources of {list(sizes)} sequences: none may be empty")
        if any(not 0 < weight < math.inf for weight in weights):
            raise UserError(f"weights {list(weights)}: each must be above 0")
        self.sizes = tuple(sizes)
        self.seed = seed
        self._parts = _whole_parts(weights)
        self._period = sum(self._parts)
        self._sources = interleave(self._parts)
        self._ranks = _ranks(self._sources, len(sizes))

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each source in the samples: the rounded weights, scaled to a sum of 1."""
        return tuple(part / self._period for part in self._parts)

    def sample(self, index: int) -> tuple[int, int]:
        """Return the source, and the sequence in it, of the sample with this 0-based index."""
        if index < 0:
            raise ValueError(f"sample {index}: indices start at 0")
        period, within = divmod(index, self._period)
        source = self._sources[within]
        nth = period * self._parts[source] + self._ranks[within]
        epoch, position = divmod(nth, self.sizes[source])
        key = _mix(_mix(_mix(self.seed & _MASK64) ^ source) ^ epoch)
        return source, permuted(position, self.sizes[source], key)


def permuted(position: int, size: int, key: int) -> int:
    """Return the image of `position` under the permutation of 0..size-1 that `key` selects.

    The permutation is a Feistel network on the integers below a power of four, iterated until the
    value is below `size`. It is a bijection by construction (Black and Rogaway, Ciphers with
    Arbitrary Finite Domains, 2002).
    """
    bits = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << bits) - 1
    round_keys = [_mix(key ^ (number + 1)) for number in range(_ROUNDS)]
    value = position
    while True:
        left, right = value >> bits, value & low
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right ^ round_key) & low)
        value = left << bits | right
        if value < size:
            return value


def interleave(parts: Sequence[int]) -> list[int]:
    """Return a pattern of source indices in which source i occurs `parts[i]` times.

    The sources are interleaved as evenly as possible: among the first n samples, the number of
    those from source i differs from n * parts[i] / sum(parts) by less than one. The rule is
    Tijdeman's (The chairman assignment problem, 1980): of the sources that may come next without
    exceeding their share, take the one with the earliest deadline.
    """
    total, k = sum(parts), len(parts)
    if k == 1:
        return [0] * total
    slack = 2 * k - 2
    lags = [0] * k  # n * parts[i] - total * taken[i]
    pattern = []
    for _ in range(total):
        lags = [lag + part for lag, part in zip(lags, parts, strict=True)]
        ready = [i for i in range(k) if lags[i] * slack >= total]
        source = min(ready, key=lambda i: ((slack - 1) * total - slack * lags[i]) / parts[i])
        lags[source] -= total
        pattern.append(source)
    return pattern


def _whole_parts(weights: Sequence[float]) -> tuple[int, ...]:
    """Round weights to integer shares of the period, by the largest-remainder method."""
    total = math.fsum(weights)
    exact = [weight / total * _PERIOD for weight in weights]
    # A decimal weight such as 0.3 is inexact in binary, so its share may be just below an integer.
    # Adding 1e-6 gives the integer that was meant.
    parts = [math.floor(value + 1e-6) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: parts[i] - exact[i])
    for i in by_remainder[: _PERIOD - sum(parts)]:
        parts[i] += 1
    if 0 in parts:
        raise UserError(
            f"weights {list(weights)}: one is below 1/{_PERIOD:,} of their sum",
            hint="Remove that source, or increase its weight.",
        )
    common = math.gcd(*parts)
    return tuple(part // common for part in parts)


def _ranks(pattern: Sequence[int], num_sources: int) -> list[int]:
    """For each position of a pattern, return how often its source occurs before the position."""
    counts = [0] * num_sources
    ranks = []
    for source in pattern:
        ranks.append(counts[source])
        counts[source] += 1
    return ranks


def _mix(value: int) -> int:
    """Hash a 64-bit integer with the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK64
    return value ^ value >> 31
