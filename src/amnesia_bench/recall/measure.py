"""Measure the recall of one checkpoint: choose prompts, generate answers, and score them.

A prompt set contains the prompts of one task at one context length. A checkpoint's recall on it is
recorded as one `Cell`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.config.eval_schema import PromptSetChoice as PromptSetChoice
from amnesia_bench.errors import UserError
from amnesia_bench.inference.candidates import Candidate
from amnesia_bench.inference.generation import generate_missing
from amnesia_bench.inference.protocol import Engine, OnDemand, PromptRequest
from amnesia_bench.recall.niah.prompt_sets import AnyPromptSet, NiahPromptSet, open_prompt_sets
from amnesia_bench.recall.niah.tasks import score_answer
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.evaluation import Cell, Generation, Outcome, SampleKey, Sampling
from amnesia_bench.records.ids import RECALL_METRIC
from amnesia_bench.records.recall import Recall, RecallSample
from amnesia_bench.statistics.intervals import wilson
from amnesia_bench.tokenizers.tokenizer import (
    tokenizer_identity,
    with_leading_special_tokens,
    with_special_tokens,
)


class PromptSetId(Protocol):
    """The identity of a prompt set: task, context length, and a hash of its prompts."""

    @property
    def task(self) -> str: ...

    @property
    def context_tokens(self) -> int: ...

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...


class PromptSet(PromptSetId, Protocol):
    """The prompts of one task at one length; see `recall.niah`."""

    def __len__(self) -> int: ...

    def tokens(self, i: int) -> NDArray[np.int32]: ...

    def values(self, i: int) -> tuple[str, ...]: ...

    def depth_percent(self, i: int) -> float | None: ...

    def needle_span(self, i: int) -> tuple[int, ...]: ...


_PromptSet = TypeVar("_PromptSet", bound=PromptSet)


def pick_prompt_sets(
    prompt_sets: Sequence[_PromptSet], choice: PromptSetChoice
) -> tuple[_PromptSet, ...]:
    """Return the chosen prompt sets, those with the longest contexts first.

    Raises:
        UserError: a chosen prompt set does not exist, or has fewer prompts than requested.
    """
    tasks = choice.tasks or tuple(sorted({prompt_set.task for prompt_set in prompt_sets}))
    lengths = choice.lengths or {prompt_set.context_tokens for prompt_set in prompt_sets}
    by_name = {
        (prompt_set.task, prompt_set.context_tokens): prompt_set for prompt_set in prompt_sets
    }
    picked = []
    for length in sorted(lengths, reverse=True):
        for task in tasks:
            prompt_set = by_name.get((task, length))
            if prompt_set is None:
                names = sorted(prompt_set.name for prompt_set in prompt_sets)
                raise UserError(
                    f"no prompts of {task} at {length} tokens",
                    hint=f"Available: {', '.join(names) or 'none'}.",
                )
            if choice.samples is not None and len(prompt_set) < choice.samples:
                raise UserError(
                    f"{prompt_set.name} holds {len(prompt_set)} prompts, but {choice.samples} "
                    "are requested",
                    hint=f"--samples {len(prompt_set)}, or build more prompts.",
                )
            picked.append(prompt_set)
    return tuple(picked)


def open_prompt_sets_for(
    folder: Path, candidates: Sequence[Candidate], choice: PromptSetChoice
) -> tuple[AnyPromptSet, ...]:
    """Open the chosen prompt sets in a folder that `amnesia niah build` wrote.

    Raises:
        UserError: the folder contains no prompts, a chosen prompt set does not exist or is too
            small, or the tokenizers of the candidates encode the prompts differently or add
            different special tokens.
    """
    tokenizers = {
        tokenizer_identity(candidate.tokenizer): candidate.tokenizer for candidate in candidates
    }
    prompt_sets = [open_prompt_sets(folder, tokenizer) for tokenizer in tokenizers.values()]
    first = candidates[0]
    no_tokens = np.zeros(0, dtype=np.int32)
    first_special = with_special_tokens(first.tokenizer, no_tokens).tolist()
    for other in candidates[1:]:
        special = with_special_tokens(other.tokenizer, no_tokens).tolist()
        if special != first_special:
            raise UserError(
                f"the tokenizers of {first.role} and {other.role} put different special tokens "
                f"around a prompt: {first_special} in {first.folder}, {special} in {other.folder}",
                hint="Recall is compared on the same tokens: give both folders the tokenizer of "
                "the fine-tune.",
            )
    return pick_prompt_sets(prompt_sets[0], choice)


def open_single_needle_sets(
    folder: Path, candidates: Sequence[Candidate], choice: PromptSetChoice
) -> tuple[NiahPromptSet, ...]:
    """Open prompt sets as `open_prompt_sets_for` does, all of tasks with one needle to find.

    Raises:
        UserError: see there; or a chosen task has no needle, or several.
    """
    prompt_sets = open_prompt_sets_for(folder, candidates, choice)
    single = tuple(s for s in prompt_sets if isinstance(s, NiahPromptSet))
    if len(single) < len(prompt_sets):
        other = next(s for s in prompt_sets if not isinstance(s, NiahPromptSet))
        names = ",".join(dict.fromkeys(s.task for s in single))
        raise UserError(
            f"{folder}: the prompts of {other.name} do not have exactly one needle",
            hint=f"Choose tasks that have: --tasks {names}"
            if names
            else "Build prompts that have: amnesia niah build --tasks niah_single_2",
        )
    return single


def prompt_requests(prompt_set: PromptSet, n: int, sampling: Sampling, tokenizer: Any) -> OnDemand:
    """Return the first `n` prompts of a prompt set as requests.

    Each prompt starts with the special tokens that `tokenizer` adds before a text, as in lm-eval.
    """

    def request(doc: int) -> PromptRequest:
        key = SampleKey(task=prompt_set.name, doc=doc, repeat=0)
        tokens = with_leading_special_tokens(tokenizer, prompt_set.tokens(doc))
        return PromptRequest(key=key, tokens=tokens, sampling=sampling, seed=None)

    return OnDemand(request, range(n))


def recall_samples(
    engine: Engine,
    candidate: Candidate,
    requests: Sequence[PromptRequest],
    prompt_set: PromptSet,
    work: Path,
) -> tuple[RecallSample, ...]:
    """Generate and score the answers to requests of one prompt set.

    Answers that already exist in `work` are reused. The name of their folder is a hash of
    everything they depend on, so all checks of a checkpoint share its answers.
    """
    identity = {"checkpoint": candidate.parent.identity, "prompts": prompt_set.sha256}
    depends = json.dumps({**engine.settings, **identity}, sort_keys=True)
    name = hashlib.sha256(depends.encode()).hexdigest()[:16]
    folder = work / "generations" / prompt_set.name / name
    generations = generate_missing(engine, requests, folder, identity=identity)
    return tuple(recall_sample(generation, candidate, prompt_set) for generation in generations)


def recall_sample(
    generation: Generation, candidate: Candidate, prompt_set: PromptSet
) -> RecallSample:
    """Return the scored record of one answer to a prompt of `prompt_set`."""
    doc = generation.key.doc
    values = prompt_set.values(doc)
    return RecallSample(
        role=candidate.role,
        key=generation.key,
        context_tokens=prompt_set.context_tokens,
        depth_percent=prompt_set.depth_percent(doc),
        needle=tuple(int(position) for position in prompt_set.needle_span(doc)),
        prompt_tokens=generation.prompt_tokens,
        value=values[0] if len(values) == 1 else values,
        text=generation.text,
        outcome=score_answer(generation, values).outcome,
        finish_reason=generation.finish_reason,
    )


def recall_of(outcomes: Sequence[Outcome], scores: Sequence[float]) -> Recall:
    """Return the recall, with its confidence interval, from the answers to one prompt set.

    Args:
        outcomes: the outcome of each answer.
        scores: the score of each answer, from 0 to 1.
    """
    total = sum(scores)
    return Recall(
        correct=outcomes.count(Outcome.CORRECT),
        empty=outcomes.count(Outcome.NO_ANSWER),
        n=len(outcomes),
        mean=total / len(outcomes),
        # A fraction varies at most as much as a score of 0 or 1 with the same mean, so Wilson's
        # interval is never too narrow.
        interval=wilson(total, len(outcomes)),
    )


def recall_cell(
    recall: Recall | None,
    scores: Sequence[float],
    candidate: Candidate,
    prompt_set: PromptSetId,
    settings: Mapping[str, str],
) -> Cell:
    """Return the `Cell` of one checkpoint on one prompt set; without a recall it is incomplete."""
    value = None if recall is None else recall.mean
    stderr = None
    if recall is not None and value is not None and recall.n > 1:
        variance = sum((score - value) ** 2 for score in scores) / recall.n
        if set(scores) <= {0.0, 1.0}:
            variance = value * (1 - value)  # the same, without rounding errors
        stderr = math.sqrt(variance / (recall.n - 1))  # lm-eval's mean_stderr
    prompts = Parent(
        role="prompts", location=prompt_set.name, identity=f"sha256:{prompt_set.sha256}"
    )
    return Cell(
        model=candidate.folder.resolve().name,
        method=candidate.method,
        task=prompt_set.task,
        context_tokens=prompt_set.context_tokens,
        metric=RECALL_METRIC,
        value=value,
        n=0 if recall is None else recall.n,
        repeats=1,
        stderr=stderr,
        interval=None if recall is None else recall.interval,
        incomplete="not run: the verdict was clear before" if recall is None else None,
        settings=settings,
        parents=(candidate.parent, prompts),
    )


def sampling_settings(sampling: Sampling) -> dict[str, str]:
    """Return the sampling parameters in the format of a `Cell`'s settings."""
    return {name: json.dumps(value) for name, value in codec.to_json(sampling).items()}
