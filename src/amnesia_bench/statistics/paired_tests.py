"""Exact tests of paired scores, and the correction for several of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_DRAWN_SIGNS = 100_000
# Values are looked up in memory of about this many numbers at once.
_CHUNK_VALUES = 1 << 21
_MAX_GRID = 1000
MOST_ENUMERATED = 40  # 2 ** (n / 2) sums are enumerated twice
_MAX_CONVOLUTION = 2_000_000_000
# Differences up to this, or sums up to this share of all differences, are rounding errors.
TIE = 1e-9


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Under the null hypothesis of equal accuracy, each discordant prompt is a fair coin flip.
    """
    flips = only_first + only_second
    tail = sum(math.comb(flips, i) for i in range(min(only_first, only_second) + 1))
    return float(min(1.0, 2 * tail / 2**flips))


def sign_flip_p_value(steps: Sequence[int]) -> float:
    """Return the two-sided p-value of the exact sign-flip test of paired differences.

    Under the null hypothesis of equal accuracy, the sign of each problem's difference is random.
    The test covers all sign patterns: it computes the exact distribution of the sum of the signed
    differences by one convolution per problem. With differences -1, 0 and 1 this is McNemar's
    exact test.

    Args:
        steps: the differences, in whole multiples of any unit.
    """
    # probabilities[s + reach] is the probability of the sum s.
    reach = sum(map(abs, steps))
    probabilities = np.zeros(2 * reach + 1)
    probabilities[reach] = 1.0
    for step in filter(None, map(abs, steps)):
        convolved = np.zeros_like(probabilities)
        convolved[step:] += probabilities[:-step] / 2
        convolved[:-step] += probabilities[step:] / 2
        probabilities = convolved
    observed = abs(sum(steps))
    lower_tail = probabilities[: reach - observed + 1].sum()
    upper_tail = probabilities[reach + observed :].sum()
    return float(min(1.0, lower_tail + upper_tail))


def paired_permutation_p_value(
    first: Sequence[float], second: Sequence[float]
) -> tuple[float, str]:
    """Return the two-sided p-value of the sign-flip test of any paired values, and its method.

    The method is `mcnemar_exact` if all differences are -1, 0 or 1. It is `sign_flip_exact` if all
    are multiples of 1/d for a d of at most 1,000, or if at most 40 are not 0. Otherwise it is
    `sign_flip_drawn`, with 100,000 random sign patterns. The observed pattern counts as one of
    those, so the p-value is never 0 and the test stays valid (Phipson and Smyth 2010, arXiv
    1603.05766).
    """
    paired = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    # A rounding error of 1e-16 must not turn a tie into a difference.
    paired = paired[np.abs(paired) > TIE]
    grid = _grid(paired)
    reach = np.abs(paired).sum() * (grid or 0)
    if grid is not None and len(paired) * (2 * reach + 1) <= _MAX_CONVOLUTION:
        p_value = sign_flip_p_value(np.rint(paired * grid).astype(int).tolist())
        only_signs = bool((np.abs(np.abs(paired) - 1) <= TIE).all())
        return p_value, "mcnemar_exact" if only_signs else "sign_flip_exact"
    if len(paired) <= MOST_ENUMERATED:
        return enumerated_sign_flip(paired.tolist()), "sign_flip_exact"
    return _drawn_p_value(paired), "sign_flip_drawn"


def _grid(values: NDArray[np.float64]) -> int | None:
    """Return the smallest d for which all values are multiples of 1/d; None above 1,000."""
    distinct = np.unique(np.abs(values))
    for d in range(1, _MAX_GRID + 1):
        scaled = distinct * d
        if np.all(np.abs(scaled - np.round(scaled)) <= TIE * d):
            return d
    return None


def enumerated_sign_flip(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the exact sign-flip test of at most 40 differences.

    Under the null hypothesis, each difference is as likely to have the opposite sign (Fisher, The
    Design of Experiments, 1935, section 21). The p-value is the share of all 2 ** n sign patterns
    whose sum is at least as far from 0 as the observed one.

    Raises:
        ValueError: there are more than 40 differences.
    """
    count = len(differences)
    if count > MOST_ENUMERATED:
        raise ValueError(f"{count} differences have too many sign patterns")
    observed = _just_below(np.asarray(differences, dtype=np.float64))
    # Every pattern is a pattern of the first half and one of the second half.
    first = _signed_sums(differences[: count // 2])
    second = np.sort(_signed_sums(differences[count // 2 :]))
    above = len(second) - np.searchsorted(second, observed - first)
    return min(1.0, float(2 * above.sum() / 2**count))


def _signed_sums(differences: Sequence[float]) -> NDArray[np.float64]:
    """Return the sums of the differences under every sign pattern [2 ** n]."""
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums - difference, sums + difference])
    return sums


def _just_below(paired: NDArray[np.float64]) -> float:
    """Return the observed sum, less what rounding errors of other orders of summation can be."""
    return float(abs(paired.sum()) - TIE * np.abs(paired).sum())


def _drawn_p_value(paired: NDArray[np.float64]) -> float:
    generator = np.random.default_rng(0)
    observed = _just_below(paired)
    rows = max(1, _CHUNK_VALUES // len(paired))
    extreme = 0
    for start in range(0, _DRAWN_SIGNS, rows):
        shape = (min(rows, _DRAWN_SIGNS - start), len(paired))
        signs = generator.integers(2, size=shape, dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ paired) >= observed).sum())
    return (extreme + 1) / (_DRAWN_SIGNS + 1)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return Holm's adjusted p-values (Scandinavian Journal of Statistics 6, 1979, 65-70).

    Rejecting every hypothesis whose adjusted value is at most `a` keeps the probability of any
    false rejection at most `a`, however the tests depend on each other.
    """
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return tuple(adjusted)
