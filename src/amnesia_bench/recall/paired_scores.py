"""Paired scores of two models: fractions of prompts' values, compared exactly.

A score of several values is a fraction. Differences of scores are therefore multiples of 1/d for a
common d, and the distribution of their sum under random signs is a convolution of whole numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from amnesia_bench.statistics.intervals import PairedCounts
from amnesia_bench.statistics.paired_tests import sign_flip_p_value

# Scores from a log may be rounded; shares of this many values at most are recognised in them.
_MOST_VALUES = 1000
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class PairedScores:
    """The scores of two models on the same prompts.

    `steps` are the differences, first minus second, in units of 1/`unit`.
    """

    steps: tuple[int, ...]
    unit: int

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> PairedScores:
        """Pair the scores of two models.

        Raises:
            ValueError: the numbers of scores differ, or a score is not a share of at most 1,000
                values, from 0 to 1.
        """
        if len(first) != len(second):
            raise ValueError(f"{len(first)} and {len(second)} scores cannot be paired")
        fractions = [(_fraction(a), _fraction(b)) for a, b in zip(first, second, strict=True)]
        unit = math.lcm(*(score.denominator for pair in fractions for score in pair))
        return cls(
            tuple(
                a.numerator * (unit // a.denominator) - b.numerator * (unit // b.denominator)
                for a, b in fractions
            ),
            unit,
        )

    @classmethod
    def of_counts(cls, counts: PairedCounts) -> PairedScores:
        """Return the scores 0 and 1 of correct and wrong answers."""
        lost, won = round(counts.only_first), round(counts.only_second)
        ties = round(counts.both + counts.neither)
        return cls((1,) * lost + (-1,) * won + (0,) * ties, 1)

    @property
    def n(self) -> int:
        """The number of prompts."""
        return len(self.steps)

    @property
    def only_first(self) -> int:
        """The number of prompts on which the first model has the higher score."""
        return sum(step > 0 for step in self.steps)

    @property
    def only_second(self) -> int:
        """The number of prompts on which the second model has the higher score."""
        return sum(step < 0 for step in self.steps)

    @property
    def difference(self) -> float:
        """The mean score of the first model minus that of the second."""
        return sum(self.steps) / self.unit / self.n

    def sizes(self, unit: int) -> Counter[int]:
        """Count the sizes of the differences, without ties, in units of 1/`unit`.

        `unit` must be a multiple of `self.unit`.
        """
        return Counter(abs(step) * unit // self.unit for step in self.steps if step)

    def losses(self, unit: int) -> int:
        """Return the sum of the differences in favour of the first model, in units of 1/`unit`."""
        return sum(step for step in self.steps if step > 0) * unit // self.unit

    def p_value(self) -> float:
        """Return the two-sided p-value of the exact sign-flip test."""
        return sign_flip_p_value(self.steps)

    def counts(self) -> PairedCounts:
        """Return counts for an interval of the difference that is no narrower than it should be.

        A fraction is counted as that part of a prompt. A difference of mean D and mean size m has
        at most the variance m - D^2, which is that of differences -1, 0 and 1 with the same D and
        m. Of scores 0 and 1, these are the usual counts.
        """
        lost = sum(step for step in self.steps if step > 0) / self.unit
        won = -sum(step for step in self.steps if step < 0) / self.unit
        return PairedCounts(both=self.n - lost - won, only_first=lost, only_second=won, neither=0)


# Cached, since few different scores occur, each thousands of times.
@lru_cache(maxsize=1024)
def _fraction(score: float) -> Fraction:
    fraction = Fraction(score).limit_denominator(_MOST_VALUES) if math.isfinite(score) else None
    if fraction is None or not 0 <= fraction <= 1 or abs(fraction - Fraction(score)) > _TOLERANCE:
        raise ValueError(f"score {score}: must be a share of at most {_MOST_VALUES} values, 0 to 1")
    return fraction
