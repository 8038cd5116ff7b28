"""Recall of one checkpoint in one prompt set: prompts in, judged samples and a `Cell` out."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.inference.candidates import Candidate
from amnesia_bench.inference.generation import generate_missing
from amnesia_bench.inference.protocol import Engine, OnDemand, PromptRequest
from amnesia_bench.recall.niah.tasks import score_needle
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.evaluation import Cell, Generation, Outcome, SampleKey, Sampling
from amnesia_bench.records.ids import RECALL_METRIC
from amnesia_bench.records.recall import Recall, RecallSample
from amnesia_bench.statistics import wilson
from amnesia_bench.tokenizers.tokenizer import with_leading_special_tokens


class PromptSetId(Protocol):
    """Which prompts: one task at one length, and a hash of what they are."""

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

    def value(self, i: int) -> str: ...

    def depth_percent(self, i: int) -> float: ...

    def needle_span(self, i: int) -> tuple[int, int]: ...


def prompt_requests(prompt_set: PromptSet, n: int, sampling: Sampling, tokenizer: Any) -> OnDemand:
    """Return the first `n` prompts of a prompt set as requests.

    With the special tokens that `tokenizer` puts before a text, as lm-eval's models see it.
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
    """Answer and judge requests of a prompt set, resuming what `work` already holds.

    Answers lie under a name made of all that they depend on, so several checks that share a
    checkpoint share its answers.
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
    """Judge one answer to a prompt of a set."""
    doc = generation.key.doc
    return RecallSample(
        role=candidate.role,
        key=generation.key,
        context_tokens=prompt_set.context_tokens,
        depth_percent=prompt_set.depth_percent(doc),
        needle=tuple(int(position) for position in prompt_set.needle_span(doc)),
        prompt_tokens=generation.prompt_tokens,
        value=prompt_set.value(doc),
        text=generation.text,
        outcome=score_needle(generation, prompt_set.value(doc)).outcome,
        finish_reason=generation.finish_reason,
    )


def recall_of(outcomes: Sequence[Outcome]) -> Recall:
    """Sum up what one checkpoint answered in one prompt set."""
    correct = outcomes.count(Outcome.CORRECT)
    return Recall(
        correct=correct,
        empty=outcomes.count(Outcome.NO_ANSWER),
        n=len(outcomes),
        interval=wilson(correct, len(outcomes)),
    )


def recall_cell(
    recall: Recall | None,
    candidate: Candidate,
    prompt_set: PromptSetId,
    settings: Mapping[str, str],
) -> Cell:
    """Return the `Cell` of one checkpoint, task and length; without a recall an incomplete one."""
    value = None if recall is None else recall.correct / recall.n
    stderr = None
    if recall is not None and value is not None and recall.n > 1:
        stderr = math.sqrt(value * (1 - value) / (recall.n - 1))  # as lm-eval's mean_stderr
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
    """Return a sampling as settings of a `Cell`."""
    return {name: json.dumps(value) for name, value in codec.to_json(sampling).items()}
