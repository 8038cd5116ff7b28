"""How many prompt tokens an engine computes if it prefills shared prefixes once.

All prompts of one haystack are the same text up to their needles, so they form a chain: a prompt
whose needle begins at token x branches off at the last cut before x, the largest multiple c(x) of
the engine's chunk. If F(n) is the cost of the first n tokens of a prompt, N prompts of T tokens
need

    N F(T) - N E[F(c(X))] + E[F(c(max X))]

since each prompt skips the tokens before its cut, and the shared text itself is computed once, up
to the cut of the deepest needle. X is uniform over the depths of `recall.niah.documents`: 40 depths
from 0 to the end. With F(n) = n the formula counts tokens, of which half remain; attention costs
F(n) ~ n^2, of which two thirds remain.

A question with several answers is computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import comb

from amnesia_bench.costs.model_shape import ModelShape

_DEPTHS = 40  # of needles in essays; in niah_single_1, every line is a place


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """The prefill of several prompts: the tokens in them, the computed tokens, and the FLOPs."""

    prompt_tokens: int
    computed_tokens: float
    flops: float


def prefill_of(
    shape: ModelShape,
    tokens: int,
    prompts: int,
    haystack_prompts: int | None,
    chunk: int,
    needles: int = 1,
) -> Prefill:
    """Return the prefill of `prompts` different prompts of `tokens` tokens.

    Args:
        shape: the shape of the model.
        tokens: the length of a prompt.
        prompts: the number of prompts.
        haystack_prompts: the number of prompts with the same haystack; None if nothing is shared.
        chunk: the tokens between possible ends of shared prefixes.
        needles: the number of needles in each prompt, at different depths.
    """

    def flops(length: int) -> float:
        return length * (2 * shape.body + shape.mixing_flops(length)) if length else 0.0

    group = 1 if haystack_prompts is None else min(prompts, haystack_prompts)
    groups = prompts / group
    return Prefill(
        prompt_tokens=prompts * tokens,
        computed_tokens=groups * shared_cost(float, tokens, group, chunk, needles),
        # The head is computed for the last token of each prompt.
        flops=groups * shared_cost(flops, tokens, group, chunk, needles)
        + prompts * 2 * shape.embedding,
    )


def shared_cost(
    cost: Callable[[int], float], tokens: int, prompts: int, chunk: int, needles: int = 1
) -> float:
    """Return the expected cost of prompts with one haystack; see the module's formula.

    Args:
        cost: the cost F(n) of the first n tokens of a prompt.
        tokens: the length T of each prompt.
        prompts: the number N of prompts.
        chunk: the tokens between possible cuts.
        needles: the number of needles in each prompt; X is the place of the first.
    """
    places = [(tokens - 1) * depth // (_DEPTHS - 1) for depth in range(_DEPTHS)]
    skipped = [cost(place // chunk * chunk) for place in places]
    # The probability that all needles of a prompt are at place i or behind it.
    behind = [comb(_DEPTHS - i, needles) / comb(_DEPTHS, needles) for i in range(_DEPTHS + 1)]
    first = [at - after for at, after in pairwise(behind)]
    # The probability that place i is the deepest of all first needles.
    deepest = [(1 - after) ** prompts - (1 - at) ** prompts for at, after in pairwise(behind)]
    once = sum(p * saved for p, saved in zip(deepest, skipped, strict=True))
    mean = sum(p * saved for p, saved in zip(first, skipped, strict=True))
    return prompts * (cost(tokens) - mean) + once
