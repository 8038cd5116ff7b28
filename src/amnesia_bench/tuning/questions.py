"""Divide needle prompts and problems into those of the search, and fresh ones that confirm it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np

from amnesia_bench.errors import UserError
from amnesia_bench.reasoning.documents import chosen_problems
from amnesia_bench.reasoning.task import ProblemSet
from amnesia_bench.recall.niah.prompt_sets import NiahPromptSet


@dataclass(frozen=True)
class NeedlePrompt:
    """One needle prompt: its prompt set, and its index in it."""

    prompt_set: NiahPromptSet
    doc: int


Needles = tuple[NeedlePrompt, ...]


def split_prompts(
    prompt_sets: Sequence[NiahPromptSet],
    fresh: Sequence[NiahPromptSet] | None,
    samples: int | None,
    seed: int,
) -> tuple[Needles, Needles]:
    """Return the prompts of the search, and the fresh prompts.

    They are drawn by the seed. The order goes through the prompt sets in turn, so that the first
    prompts are of all tasks and lengths.

    Args:
        prompt_sets: the prompt sets of the search.
        fresh: the prompt sets of the fresh prompts; None takes them from `prompt_sets`, too.
        samples: number of prompts per prompt set, for each of the two; None uses as many as there
            are.
        seed: draws the prompts.

    Raises:
        UserError: there are too few prompts, a prompt would be in both, or the fresh prompts are of
            other tasks or lengths.
    """
    _check_same_sets(prompt_sets, prompt_sets if fresh is None else fresh)
    smallest = min(map(len, prompt_sets))
    available = smallest // 2 if fresh is None else min(smallest, *map(len, fresh))
    count = samples or available
    if not 0 < count <= available:
        shared = "" if fresh is not None else ", half of which stay fresh for the confirmation"
        raise UserError(
            f"--samples {count}: the smallest prompt set has {smallest} prompts{shared}",
            hint=f"--samples {available}, or build more prompts."
            if available
            else "Build more prompts: amnesia niah build --samples N",
        )
    rng = np.random.default_rng([seed, 0])
    search, held = [], []
    for prompt_set in prompt_sets:
        order = rng.permutation(len(prompt_set)).tolist()
        search.append([NeedlePrompt(prompt_set, doc) for doc in order[:count]])
        if fresh is None:
            held.append([NeedlePrompt(prompt_set, doc) for doc in order[count : 2 * count]])
    for prompt_set in fresh or ():
        order = rng.permutation(len(prompt_set)).tolist()
        held.append([NeedlePrompt(prompt_set, doc) for doc in order[:count]])
    both = _in_turn(search), _in_turn(held)
    _refuse_shared_prompts(*both)
    return both


def _check_same_sets(search: Sequence[NiahPromptSet], held: Sequence[NiahPromptSet]) -> None:
    names = [sorted(prompt_set.name for prompt_set in sets) for sets in (search, held)]
    if names[0] != names[1]:
        raise UserError(
            f"the fresh prompts are {', '.join(names[1])}, but the prompts of the search are "
            f"{', '.join(names[0])}: what is chosen on some tasks and lengths must be confirmed on "
            "the same ones",
            hint="Build fresh prompts of these tasks and lengths (amnesia niah build), or choose "
            "common ones with --tasks and --lengths.",
        )


def _in_turn(by_set: Sequence[Sequence[NeedlePrompt]]) -> Needles:
    return tuple(
        needle for needle in chain.from_iterable(zip_longest(*by_set)) if needle is not None
    )


def _refuse_shared_prompts(search: Needles, held: Needles) -> None:
    by_hash = {_hash(needle): needle for needle in search}
    shared = [needle for needle in held if _hash(needle) in by_hash]
    if shared:
        needle = shared[0]
        twin = by_hash[_hash(needle)]
        raise UserError(
            f"{len(shared)} of {len(held)} fresh prompts are also prompts of the search, for "
            f"example prompt {needle.doc} of {needle.prompt_set.name} (prompt {twin.doc} there)",
            hint="What is chosen on some prompts must be confirmed on others. Build fresh ones "
            "from other essays, or leave --fresh-prompts out: half of --prompts then stays fresh.",
        )


def _hash(needle: NeedlePrompt) -> str:
    return needle.prompt_set.prompt_sha256(needle.doc)


def split_problems(available: ProblemSet, count: int, seed: int) -> tuple[ProblemSet, ProblemSet]:
    """Return `count` problems for the search, and as many fresh ones, drawn by the seed.

    Of problems that occur twice, one is used.

    Raises:
        UserError: there are fewer than twice as many different problems.
    """
    first: dict[str, int] = {}
    for index, row in enumerate(available.rows):
        first.setdefault(json.dumps(row, sort_keys=True), index)
    indices = list(first.values())
    if len(indices) < 2 * count:
        raise UserError(
            f"{available.origin}: has {len(indices)} different problems, but {count} for the "
            f"search and {count} fresh ones are needed",
            hint=f"Use at most {len(indices) // 2}: --reasoning TASK:{len(indices) // 2}"
            if len(indices) > 1
            else "Give a file with more problems: --data FILE",
        )
    drawn = np.random.default_rng([seed, 1]).permutation(indices).tolist()
    return (
        chosen_problems(available, drawn[:count]),
        chosen_problems(available, drawn[count : 2 * count]),
    )
