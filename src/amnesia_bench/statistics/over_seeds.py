"""Tests and intervals over training seeds, for values that several seeds measured.

The seed is the sampling unit: runs that differ only in their seed differ by more than the choice
of prompts explains. Shapes: B bootstrap draws, S seeds, P prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.errors import UserError
from amnesia_bench.records.evaluation import Interval
from amnesia_bench.statistics.paired_tests import MOST_ENUMERATED, enumerated_sign_flip

ALPHA = 0.05  # a test over seeds is significant if its two-sided p-value is smaller
BOOTSTRAP_METHOD = "bootstrap over seeds and prompts"
_DRAWS = 4000

Draws = NDArray[np.float64]
Prompt = TypeVar("Prompt")


def sign_flip_over_seeds(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the exact sign-flip test of one difference per seed.

    Raises:
        UserError: there are more than 40 seeds, for which there are too many patterns.
    """
    if len(differences) > MOST_ENUMERATED:
        raise UserError(
            f"{len(differences)} seeds: the exact test over seeds covers up to {MOST_ENUMERATED}",
            hint="Report fewer seeds.",
        )
    return enumerated_sign_flip(differences)


def smallest_p_value(seeds: int) -> float:
    """Return the smallest p-value that `sign_flip_over_seeds` can have for this number of seeds."""
    return min(1.0, 2.0 ** (1 - seeds))


def bootstrap_means(values: Sequence[Mapping[Prompt, float]], stream: int = 0) -> Draws:
    """Draw means over seeds and prompts by the two-level bootstrap.

    Each draw resamples S - 1 seeds, and the prompts within every resampled seed. With S seeds, the
    spread of the draws would be too small by a factor of (S - 1) / S (Rao and Wu, Journal of the
    American Statistical Association 83, 1988, 231-241).

    If seeds share prompts, a draw resamples the prompts once for all seeds (Owen, Annals of Applied
    Statistics 1, 2007, 386-411), since the luck of a shared prompt is not averaged out over seeds.

    The draws are the same in every call. Sums that share the seeds but not the prompts are added
    draw by draw: the seeds of a draw depend only on S, and the prompts also on `stream`.

    Args:
        values: for each seed, its values by prompt; at least two seeds.
        stream: the number of the random stream of the prompts.

    Returns:
        (B,): the mean of the resampled seeds' means.
    """
    picks = _seed_picks(len(values))  # (B, S - 1)
    prompts = list(dict.fromkeys(prompt for seed in values for prompt in seed))
    if sum(map(len, values)) > len(prompts):
        means = _means_on_shared(values, prompts, stream)
        return np.asarray(np.take_along_axis(means, picks, axis=1).mean(axis=1))
    chosen = np.empty(picks.shape)
    for i, seed in enumerate(values):
        # A resample of its own for every time that the seed is picked.
        weights = _prompt_weights(len(seed), picks.shape[1], stream)[(picks == i).ravel()]
        chosen[picks == i] = weights @ np.array(list(seed.values()), dtype=np.float32)
    return np.asarray(chosen.mean(axis=1))


def widened(interval: Interval, other: Interval) -> Interval:
    """Return an interval that is extended as far as needed to contain another one."""
    low, high = min(interval.low, other.low), max(interval.high, other.high)
    return Interval(low=low, high=high, level=interval.level, method=interval.method)


def _means_on_shared(
    values: Sequence[Mapping[Prompt, float]], prompts: Sequence[Prompt], stream: int
) -> Draws:
    """Return each seed's mean over the resampled prompts of every draw, (B, S)."""
    table = np.array(
        [[seed.get(prompt, math.nan) for prompt in prompts] for seed in values], dtype=np.float32
    )  # (S, P)
    answered = ~np.isnan(table)
    weights = _prompt_weights(len(prompts), 1, stream)  # (B, P)
    totals = weights @ np.where(answered, table, 0).T
    counts = weights @ answered.T.astype(np.float32)
    # A draw may contain none of the prompts of a seed that answered few of them.
    own = np.array([sum(seed.values()) / len(seed) for seed in values])
    return np.where(counts > 0, totals / np.maximum(counts, 1e-9), own)


@lru_cache(maxsize=8)
def _seed_picks(seeds: int) -> NDArray[np.int64]:
    """Return the indices of the seeds in every draw, (B, S - 1)."""
    return np.random.default_rng([0, seeds]).integers(seeds, size=(_DRAWS, seeds - 1))


@lru_cache(maxsize=6)  # 48 MB each for 10 seeds with 300 prompts
def _prompt_weights(prompts: int, copies: int, stream: int) -> NDArray[np.float32]:
    """Return how often each prompt occurs in a resample, divided by P, (B x copies, P)."""
    generator = np.random.default_rng([1, stream])
    chances = np.full(prompts, 1 / prompts)
    counts = generator.multinomial(prompts, chances, size=_DRAWS * copies)
    return (counts / prompts).astype(np.float32)
