"""The sequential test that compares two models: when to stop, and which verdict to return.

The prompts of a set are evaluated in a few looks: after 25, 50, 100, ... and after all of them. The
comparison stops at the first look with a clear verdict.

- **Regression**: more prompts were lost than won. The test is exact. If both models are equally
  good, every discordant prompt is a fair coin flip, so the sequence of looks is a random walk. Its
  probability of crossing a bound by look k is computed by convolution and kept at
  `error_rate * n_k / n_total` (the linear spending function of Kim and DeMets, Biometrika 74,
  1987, 149-154). Unspent alpha of one look carries over to the next, since the statistic is
  discrete. The rate of false alarms over all looks is therefore at most `error_rate` for any number
  of discordant prompts, and lower if the second model is better. Several prompt sets share the
  rate evenly (Bonferroni).
- **No regression**: a drop of `margin` plus 5 points or more is excluded: the upper end of Tango's
  interval, at the error rate spent since the previous look, is below it. Each prompt set uses the
  full rate, since the overall verdict requires all of them (Berger, Technometrics 24, 1982,
  295-300).
- **Undecided** otherwise.

Measured by scripts/bench_check.py with 2,000 simulated checks per case, of at most 500 prompts, at
2.5 %: the rate of false alarms is 0 to 2.6 % with up to 30 % of the prompts discordant. A drop of 5
points is detected in all checks if no prompt is won, and in 79 % if 5 % are won; as one of six
prompt sets, in 99.8 % and 54 %. Drops of 10 points are detected in at least 99 %, drops of 20
points in all, after 66 to 126 prompts. Models with equal answers are cleared after 200 prompts.
With 10 % discordant prompts, 90 % of equal models are cleared by 500 prompts and most others stay
undecided; with 30 %, half of them are cleared.

With a `margin` above 0, a regression also requires the whole interval to be above the margin. This
condition is asymptotic, as Tango's interval is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.records.recall import CheckVerdict, Rule
from amnesia_bench.statistics import PairedCounts, paired_difference

FIRST_LOOK = 25


def looks(samples: int) -> tuple[int, ...]:
    """Return the number of prompts at each look: 25, doubled up to half of all, then all."""
    interim = []
    look = FIRST_LOOK
    while 2 * look <= samples:
        interim.append(look)
        look *= 2
    return (*interim, samples)


def judge(history: Sequence[PairedCounts], rule: Rule, num_prompt_sets: int) -> CheckVerdict:
    """Return the verdict on one prompt set after its latest look.

    Args:
        history: the cumulative counts at each look; pre is the first model.
        rule: the total number of prompts, the error rate and the margin.
        num_prompt_sets: number of prompt sets that share the error rate.

    Raises:
        ValueError: the numbers of prompts differ from `looks`.
    """
    seen = tuple(counts.n for counts in history)
    if not seen or seen != looks(rule.samples)[: len(seen)]:
        raise ValueError(f"looks at {seen} of {rule.samples} prompts")
    before = seen[-2] if len(seen) > 1 else 0
    spent = rule.error_rate * (seen[-1] - before) / rule.samples
    if _crossed(history, rule.samples, rule.error_rate / num_prompt_sets) and (
        rule.margin == 0
        or paired_difference(history[-1], 1 - 2 * spent / num_prompt_sets).low > rule.margin
    ):
        return CheckVerdict.REGRESSION
    if paired_difference(history[-1], 1 - 2 * spent).high < rule.excluded_drop:
        return CheckVerdict.NO_REGRESSION
    return CheckVerdict.UNDECIDED


def _crossed(history: Sequence[PairedCounts], samples: int, error_rate: float) -> bool:
    """Whether the number of losses has crossed the bound at the latest look."""
    alive = np.ones(1)  # probability of each number of losses, for walks that have not crossed
    spent = 0.0
    flips = 0
    crossed = False
    for counts in history:
        new = counts.only_first + counts.only_second - flips
        flips += new
        alive = np.convolve(alive, _coin(new))
        tails = np.cumsum(alive[::-1])[::-1]
        allowed = error_rate * counts.n / samples - spent
        bound = int(np.searchsorted(-tails, -allowed))  # smallest number of losses whose tail fits
        crossed = counts.only_first >= bound
        if bound < len(alive):
            spent += float(tails[bound])
            alive[bound:] = 0.0
    return crossed


@cache
def _coin(flips: int) -> NDArray[np.float64]:
    """Return the probability of each number of losses in `flips` fair coin flips."""
    return np.array([math.comb(flips, i) / 2**flips for i in range(flips + 1)])
