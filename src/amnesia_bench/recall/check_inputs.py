"""Everything about the inputs of a check that can be wrong, found before a model is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from amnesia_bench.errors import UserError
from amnesia_bench.inference.candidates import Candidate
from amnesia_bench.recall.measure import PromptSet
from amnesia_bench.recall.niah.build import build_prompts
from amnesia_bench.recall.niah.haystack import read_haystack
from amnesia_bench.recall.niah.prompt_sets import NiahPromptSet, open_prompt_sets
from amnesia_bench.requests.recall import BuildPromptsRequest
from amnesia_bench.store.layout import MANIFEST
from amnesia_bench.tokenizers.tokenizer import (
    legacy_tokenizer_identity,
    tokenizer_identity,
    with_special_tokens,
)

_PromptSet = TypeVar("_PromptSet", bound=PromptSet)


@dataclass(frozen=True, kw_only=True)
class PromptSetChoice:
    """Which prompts of a folder; None takes all tasks, lengths or prompts that it holds."""

    tasks: tuple[str, ...] | None
    lengths: tuple[int, ...] | None
    samples: int | None


def pick_prompt_sets(held: Sequence[_PromptSet], choice: PromptSetChoice) -> tuple[_PromptSet, ...]:
    """Return the chosen prompt sets, the longest first.

    Raises:
        UserError: one is not there, or holds fewer prompts than are asked for.
    """
    tasks = choice.tasks or tuple(sorted({prompt_set.task for prompt_set in held}))
    lengths = choice.lengths or {prompt_set.context_tokens for prompt_set in held}
    by_name = {(prompt_set.task, prompt_set.context_tokens): prompt_set for prompt_set in held}
    picked = []
    for length in sorted(lengths, reverse=True):
        for task in tasks:
            prompt_set = by_name.get((task, length))
            if prompt_set is None:
                raise UserError(
                    f"no prompts of {task} at {length} tokens",
                    hint=f"There are: {', '.join(sorted(each.name for each in held)) or 'none'}.",
                )
            if choice.samples is not None and len(prompt_set) < choice.samples:
                raise UserError(
                    f"{prompt_set.name} holds {len(prompt_set)} prompts, "
                    f"{choice.samples} are asked for",
                    hint=f"--samples {len(prompt_set)}, or build more prompts.",
                )
            picked.append(prompt_set)
    return tuple(picked)


def open_prompt_sets_for(
    folder: Path, candidates: Sequence[Candidate], choice: PromptSetChoice
) -> tuple[NiahPromptSet, ...]:
    """Open the prompts that `amnesia niah build` wrote; see `pick_prompt_sets` for the choice.

    Raises:
        UserError: the folder holds no prompts, or the tokenizer of a candidate makes other tokens
            of them, or puts others around them.
    """
    tokenizers = {tokenizer_identity(each.tokenizer): each.tokenizer for each in candidates}
    prompt_sets = [open_prompt_sets(folder, tokenizer) for tokenizer in tokenizers.values()]
    first = candidates[0]
    bare = np.zeros(0, dtype=np.int32)
    for other in candidates[1:]:
        around = [with_special_tokens(each.tokenizer, bare).tolist() for each in (first, other)]
        if around[0] != around[1]:
            raise UserError(
                f"the tokenizers of {first.role} and {other.role} put different special tokens "
                f"around a prompt: {around[0]} in {first.folder}, {around[1]} in {other.folder}",
                hint="Recall is compared on the same tokens: give both folders the tokenizer of "
                "the fine-tune.",
            )
    return pick_prompt_sets(prompt_sets[0], choice)


def build_prompt_sets_for(
    build: BuildPromptsRequest, work: Path, candidates: Sequence[Candidate]
) -> tuple[NiahPromptSet, ...]:
    """Build prompts into `work`, or take those that an earlier check has built there.

    They are built for the tokenizer of the first candidate.

    Raises:
        UserError: they cannot be built (a haystack that is too short, ...), or see
            `open_prompt_sets_for`.
        MissingEnvironmentError: words, sentence model or hub are not to be had.
    """
    depends = {
        "lengths": build.lengths,
        "tasks": build.tasks,
        "haystack": None if build.haystack is None else read_haystack(build.haystack).sha256,
        "samples": build.samples,
    }
    tokenizer = candidates[0].tokenizer
    # Older versions named the folder by another hash; a check that they began resumes.
    folder, older = (
        work / "prompts" / _short_digest({**depends, "tokenizer": identity(tokenizer)})
        for identity in (tokenizer_identity, legacy_tokenizer_identity)
    )
    if (older / MANIFEST).is_file():
        folder = older
    elif not (folder / MANIFEST).is_file():
        build_prompts(build, folder)
    choice = PromptSetChoice(tasks=build.tasks, lengths=build.lengths, samples=build.samples)
    return open_prompt_sets_for(folder, candidates, choice)


def _short_digest(depends: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]
