"""When to stop comparing two models on ever more prompts, and what may then be said.

The prompts of a set are looked at a few times: after 25, 50, 100, ... and after all of them.
At each look the comparison ends if it is clear; only what is not clear goes on.

- **Regression**: more prompts were lost than won. The test is exact. Where both models are equally
  good every discordant prompt is a fair coin, so the sequence of looks is a coin walk whose
  chance of crossing a bound by look k is computed by convolution and kept at
  `error_rate * n_k / n_total` (the linear spending function of Kim and DeMets, Biometrika 74,
  1987, 149-154; with a discrete walk what one look leaves the next may use). Over all looks
  the false alarms are thus at most `error_rate`, however many prompts are discordant, and fewer
  where the second model is better. Several prompt sets share the rate evenly (Bonferroni).
- **No regression**: a drop of `margin` plus 5 points or more is excluded, by the upper end of
  Tango's interval at the rate spent since the look before. Here every prompt set has the whole
  rate, since the verdict on all of them needs each (Berger, Technometrics 24, 1982, 295-300).
- **Undecided** otherwise.

Measured by scripts/bench_check.py, 2,000 simulated checks of at most 500 prompts a case at 2.5 %:
false alarms 0 to 2.6 % with up to 30 % of the prompts discordant. A drop of 5 points is found in
all checks where no prompt is won, in 79 % where 5 % are won besides; as one of six prompt sets in
99.8 and 54 %. Drops of 10 points are found in at least 99 %, those of 20 in all, after 66 to 126
prompts. Equal answers are cleared after 200 prompts; with 10 % discordant 90 % of equal models are
cleared by 500 and most of the rest stays undecided, with 30 % half of them.

With a `margin` above 0 a regression must besides have the whole interval above the margin; that
part is asymptotic, as Tango's interval is.
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
    """Return after how many prompts of a set to look: 25, doubled up to half of all, then all."""
    early = []
    look = FIRST_LOOK
    while 2 * look <= samples:
        early.append(look)
        look *= 2
    return (*early, samples)


def judge(history: Sequence[PairedCounts], rule: Rule, num_prompt_sets: int) -> CheckVerdict:
    """Judge one prompt set after its latest look.

    Args:
        history: the counts at each look so far, each holding those before it; pre is the first.
        rule: how many prompts there are in all, the error rate and the margin.
        num_prompt_sets: how many prompt sets share the error rate.

    Raises:
        ValueError: the looks are not those of `looks`.
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
    """Whether the losses have crossed the bound at the latest look."""
    alive = np.ones(1)  # chance of each number of losses, of a walk that has not crossed yet
    spent = 0.0
    flips = 0
    crossed = False
    for counts in history:
        new = counts.only_first + counts.only_second - flips
        flips += new
        alive = np.convolve(alive, _coin(new))
        tails = np.cumsum(alive[::-1])[::-1]
        allowed = error_rate * counts.n / samples - spent
        bound = int(np.searchsorted(-tails, -allowed))  # fewest losses whose tail fits
        crossed = counts.only_first >= bound
        if bound < len(alive):
            spent += float(tails[bound])
            alive[bound:] = 0.0
    return crossed


@cache
def _coin(flips: int) -> NDArray[np.float64]:
    """Return the chance of each number of losses in this many fair flips."""
    return np.array([math.comb(flips, i) / 2**flips for i in range(flips + 1)])
