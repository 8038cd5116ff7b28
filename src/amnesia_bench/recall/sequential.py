"""The sequential test that compares two models: it decides when to stop, and with which verdict.

The answers to a prompt set are tested at a few looks: after 25, 50, 100, ... prompts and after all
prompts. The comparison stops at the first look with a clear verdict.

- **Regression**: scores fell significantly from pre to post. The test is an exact sign-flip test.
  If both models are equally good on each prompt, the sign of a difference of scores is a fair coin
  flip, so the sum of the differences is a random walk, given their sizes. (Of answers that are
  correct or wrong, all sizes are 1: this is the sign test of lost and won prompts, McNemar's.) The
  probability that the sum crosses a bound by look k is computed by convolution and is at most
  `error_rate * n_k / n_total` (the linear spending function of Kim and DeMets, Biometrika 74, 1987,
  149-154). The statistic is discrete, so a look may not spend all of its alpha; the rest carries
  over to the next look. The false-alarm rate over all looks is therefore at most `error_rate` for
  any sizes of the differences, and lower if the second model is better. Several prompt sets share
  the error rate evenly (Bonferroni).
- **No regression**: a drop of `margin` plus 5 points or more is excluded. This is the case if the
  upper end of Tango's interval, at the error rate spent since the previous look, is below that
  drop. A fraction counts as a part of a prompt, which never makes the interval too narrow. Each
  prompt set uses the full error rate, since the overall verdict requires all prompt
  sets to be clear (Berger, Technometrics 24, 1982, 295-300).
- **Undecided** otherwise.

scripts/bench_check.py measured the test with 2,000 simulated checks per case, of at most 500
prompts each, at an error rate of 2.5 %. With up to 30 % discordant prompts, the false-alarm rate is
0 to 2.6 %. A drop of 5 points is detected in all checks if no prompt is won, and in 79 % of the
checks if 5 % of the prompts are won; if the prompt set is one of six, in 99.8 % and 54 % of them.
Drops of 10 points are detected in at least 99 % of the checks. Drops of 20 points are detected in
all of them, after 66 to 126 prompts. Models with identical answers are cleared after 200 prompts.
With 10 % discordant prompts, 90 % of the equally good models are cleared by 500 prompts, and most
others stay undecided; with 30 % discordant prompts, half of them are cleared.

With a `margin` above 0, a regression also requires both ends of Tango's interval to be above the
margin. This condition is asymptotic, like Tango's interval.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.recall.paired_scores import PairedScores
from amnesia_bench.records.recall import CheckVerdict, Rule
from amnesia_bench.statistics.intervals import PairedCounts, paired_difference

FIRST_LOOK = 25


def looks(samples: int) -> tuple[int, ...]:
    """Return the number of prompts at each look: 25, doubled up to half of `samples`, then all."""
    interim = []
    look = FIRST_LOOK
    while 2 * look <= samples:
        interim.append(look)
        look *= 2
    return (*interim, samples)


def judge(
    history: Sequence[PairedScores | PairedCounts], rule: Rule, num_prompt_sets: int
) -> CheckVerdict:
    """Return the verdict on one prompt set after its latest look.

    Args:
        history: the scores, or the counts of answers that are correct or wrong, of all prompts up
            to each look so far; pre is the first model.
        rule: the total number of prompts, the error rate and the margin.
        num_prompt_sets: number of prompt sets that share the error rate.

    Raises:
        ValueError: the numbers of prompts in `history` differ from the result of `looks`.
    """
    seen = tuple(scores.n for scores in history)
    if not seen or seen != looks(rule.samples)[: len(seen)]:
        raise ValueError(f"looks at {seen} of {rule.samples} prompts")
    before = seen[-2] if len(seen) > 1 else 0
    spent = rule.error_rate * (seen[-1] - before) / rule.samples
    scores = [
        PairedScores.of_counts(look) if isinstance(look, PairedCounts) else look for look in history
    ]
    counts = scores[-1].counts()
    if _crossed(scores, rule.samples, rule.error_rate / num_prompt_sets) and (
        rule.margin == 0
        or paired_difference(counts, 1 - 2 * spent / num_prompt_sets).low > rule.margin
    ):
        return CheckVerdict.REGRESSION
    if paired_difference(counts, 1 - 2 * spent).high < rule.excluded_drop:
        return CheckVerdict.NO_REGRESSION
    return CheckVerdict.UNDECIDED


def _crossed(history: Sequence[PairedScores], samples: int, error_rate: float) -> bool:
    """Return whether the sum of the losses has crossed the bound at the latest look."""
    unit = math.lcm(*(scores.unit for scores in history))
    # Given the sizes of all differences, the sum of the losses determines that of the wins.
    alive = np.ones(1)  # joint probability of each sum of losses and no crossing so far
    spent = 0.0
    before: Counter[int] = Counter()
    crossed = False
    for scores in history:
        sizes = scores.sizes(unit)
        alive = _with_random_signs(alive, sizes - before)
        before = sizes
        tails = np.cumsum(alive[::-1])[::-1]
        allowed = error_rate * scores.n / samples - spent
        bound = int(np.searchsorted(-tails, -allowed))  # smallest sum with tail <= allowed
        crossed = scores.losses(unit) >= bound
        if bound < len(alive):
            spent += float(tails[bound])
            alive[bound:] = 0.0
    return crossed


def _with_random_signs(
    probabilities: NDArray[np.float64], sizes: Counter[int]
) -> NDArray[np.float64]:
    """Return the distribution of a sum of losses after further differences of these sizes.

    Each of them is a loss or a win with equal probability.
    """
    for size, count in sorted(sizes.items()):
        if size == 1:
            probabilities = np.convolve(probabilities, _coin(count))
            continue
        for _ in range(count):
            added = np.zeros(len(probabilities) + size)
            added[:-size] += probabilities / 2
            added[size:] += probabilities / 2
            probabilities = added
    return probabilities


@cache
def _coin(flips: int) -> NDArray[np.float64]:
    """Return the probabilities of 0, 1, ..., `flips` losses in `flips` fair coin flips."""
    return np.array([math.comb(flips, i) / 2**flips for i in range(flips + 1)])
