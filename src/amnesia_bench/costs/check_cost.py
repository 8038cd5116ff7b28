"""What a recall check costs, before it starts: prompts, tokens, and an estimate of the time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.costs.decoding import DECODING, Answers, decoding_of
from amnesia_bench.costs.gpus import GPUS
from amnesia_bench.costs.model_shape import ModelShape, read_model_shape
from amnesia_bench.costs.prefill import prefill_of
from amnesia_bench.costs.stage_cost import PREFILL_UTILISATION
from amnesia_bench.errors import UserError
from amnesia_bench.records.codec import from_json
from amnesia_bench.records.ids import RECALL_IDS
from amnesia_bench.records.niah import NiahPrompts
from amnesia_bench.requests.recall import CheckRequest
from amnesia_bench.store.files import read_json
from amnesia_bench.weights.checkpoint import open_checkpoint

_GPU = "h100"
_PROMPTS, _PROMPT_SETS = "prompts.json", "cells"  # as in `recall.niah.prompt_sets`


@dataclass(frozen=True, kw_only=True)
class CheckCost:
    """The upper bound on what a check computes: it does not stop early, and answers are full.

    Attributes:
        prompt_sets: the number of tasks at all lengths.
        answers: the number of answers of all checkpoints.
        prompt_tokens: the number of tokens in their prompts, at most.
        new_tokens: the number of tokens in the answers, at most.
        gpu_hours: the estimated hours on one GPU; None if the size of the model is unknown.
        gpu: the name of that GPU.
    """

    prompt_sets: int
    answers: int
    prompt_tokens: int
    new_tokens: int
    gpu_hours: float | None
    gpu: str = _GPU


def estimate_check(request: CheckRequest) -> CheckCost:
    """Estimate the cost of a check.

    Raises:
        UserError: a checkpoint or the prompts do not exist.
    """
    sets = _prompt_sets(request)
    checkpoints = 2 if request.restored is None else 3
    limit = request.defaults.max_new_tokens
    shape = _shape(request.pre)
    prompt_tokens = new_tokens = 0
    hours = 0.0
    answers = checkpoints * sum(samples for _, _, samples in sets)
    for task, length, samples in sets:
        new = min(limit, RECALL_IDS[task].answer_tokens)
        prompt_tokens += checkpoints * samples * length
        new_tokens += checkpoints * samples * new
        if shape is not None:
            seconds = _seconds(shape, request, task, Answers(
                count=samples, prompt_tokens=length, limit=new, mean=new
            ))  # fmt: skip
            hours += checkpoints * seconds / 3600
    return CheckCost(
        prompt_sets=len(sets),
        answers=answers,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        gpu_hours=None if shape is None else hours,
    )


def _prompt_sets(request: CheckRequest) -> list[tuple[str, int, int]]:
    """Return the task, the length in tokens and the number of prompts of each prompt set."""
    choice = request.choice
    if request.prompts is None:
        assert choice.tasks is not None
        assert choice.lengths is not None
        assert choice.samples is not None
        return [(task, n, choice.samples) for n in choice.lengths for task in choice.tasks]
    path = request.prompts / _PROMPTS
    names = from_json(NiahPrompts, read_json(path), str(path)).cells
    stored = [(name, *name.split("@")) for name in names]
    return [
        (task, int(length), choice.samples or _stored_samples(request.prompts, name))
        for name, task, length in stored
        if task in (choice.tasks or task) and int(length) in (choice.lengths or (int(length),))
    ]


def _stored_samples(folder: Path, name: str) -> int:
    samples = read_json(folder / _PROMPT_SETS / f"{name}.json")["samples"]
    return len(samples if isinstance(samples, list) else samples["key"])


def _shape(folder: Path) -> ModelShape | None:
    try:
        return read_model_shape(open_checkpoint(folder).config)
    except UserError:
        return None  # the check itself reports what is wrong with a checkpoint


def _seconds(shape: ModelShape, request: CheckRequest, task: str, answers: Answers) -> float:
    """Return the seconds that one checkpoint needs for one prompt set."""
    gpu, engine = GPUS[_GPU], DECODING[request.engine.name]
    needles = RECALL_IDS[task].needles
    prefill = prefill_of(
        shape,
        answers.prompt_tokens,
        answers.count,
        answers.count if needles else None,
        engine.chunk_tokens,
        needles=needles or 1,
    )
    seconds = prefill.flops / gpu.flops_per_second / PREFILL_UTILISATION
    return seconds + decoding_of(shape, answers, engine, gpu).seconds
