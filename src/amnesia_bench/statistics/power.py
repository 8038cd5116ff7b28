"""How large a loss a paired comparison would have shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.statistics.intervals import root_of_falling
from amnesia_bench.statistics.paired_tests import TIE


def sign_test_power(n: int, lost: float, won: float, error_rate: float) -> float:
    """Return the power of the one-sided exact sign test (McNemar's) on `n` pairs.

    Args:
        n: number of pairs.
        lost: probability that only the first model answers a pair correctly.
        won: probability that only the second model does.
        error_rate: the test rejects if its one-sided p-value is at most this.
    """
    discordance = lost + won
    if discordance == 0:
        return 0.0
    # The number of discordant pairs is binomial; given it, so is the number of losses.
    discordant = _binomial(n, discordance)
    power = 0.0
    for flips in np.flatnonzero(discordant > 1e-10).tolist():
        losses = _binomial(flips, lost / discordance)
        power += discordant[flips] * losses[_critical_losses(flips, error_rate) :].sum()
    return float(power)


def smallest_detectable_loss(
    paired: Sequence[float], error_rate: float, power: float, *, binary: bool
) -> float | None:
    """Return the smallest true mean loss that the paired test detects with this power.

    Of two models with a given loss, the share of untied pairs is assumed to be the observed one, or
    as large as the loss requires. The calculation is exact for right and wrong. Graded scores are
    treated as if all untied pairs differed by their root mean square, which has the same variance.

    Args:
        paired: the observed differences.
        error_rate: the test rejects if its one-sided p-value is at most this.
        power: the required power.
        binary: whether all scores are 0 or 1, so that untied pairs differ by 1.

    Returns:
        The loss; None if even a loss in every pair is detected less often, or if all pairs of
        graded scores are tied.
    """
    values = np.asarray(paired, dtype=np.float64)
    untied = values[np.abs(values) > TIE]
    if not binary and not len(untied):
        return None
    size = 1.0 if binary else float(np.sqrt((untied**2).mean()))
    observed = len(untied) / len(values)

    def misses(loss: float) -> float:
        total = max(observed, loss)
        chances = (total + loss) / 2, (total - loss) / 2
        return power - sign_test_power(len(values), *chances, error_rate)

    return None if misses(1.0) > 0 else size * root_of_falling(misses, 0.0, 1.0, steps=14)


def _binomial(n: int, chance: float) -> NDArray[np.float64]:
    """Return the probabilities of 0, 1, ..., `n` successes."""
    if chance in (0.0, 1.0):
        certain = np.zeros(n + 1)
        certain[n if chance else 0] = 1.0
        return certain
    counts = np.arange(n + 1)
    factorials = _log_factorials(1 << n.bit_length())
    ways = factorials[n] - factorials[counts] - factorials[n - counts]
    logarithms = ways + counts * math.log(chance) + (n - counts) * math.log1p(-chance)
    return np.asarray(np.exp(logarithms))


@cache
def _log_factorials(count: int) -> NDArray[np.float64]:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count + 1)))])


@cache
def _critical_losses(flips: int, error_rate: float) -> int:
    """Return the smallest number of losses that is significant; `flips` + 1 if none is."""
    tails = np.cumsum(_binomial(flips, 0.5)[::-1])[::-1]
    return int(np.searchsorted(-tails, -error_rate))
