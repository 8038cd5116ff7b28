"""Divide a long evaluation into parts: stages that run at the same time, and one that merges them.

The parts are stages of their own, with the id of the whole stage and the part in its name:
`answers.sft-s0.math500.part2of3-3f2a61c09b7d` is a part of `answers.sft-s0.math500-3f2a61c09b7d`.
The whole stage keeps its id and its result, whatever the number of parts. It merges the parts on
the CPU. Once it is done, its parts are not needed any more: they count as done even if they are
removed (`bookkeeping.state_of`).
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from amnesia_bench.costs.gpus import Gpu
from amnesia_bench.costs.stage_cost import cost_of
from amnesia_bench.costs.work import Answering, Writing
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.requests.answering import AnsweringRequest, AnswerPart, MergedParts
from amnesia_bench.requests.reasoning import GenerateRequest
from amnesia_bench.requests.recall import EvaluateRequest

_BYTES_PER_ANSWER_TOKEN = 4


def part_count(evaluation: Stage, gpu: Gpu, max_hours: float | None) -> int:
    """Return the number of parts of an evaluation, each of which takes about `max_hours` at most.

    The time is estimated for the stage's number of GPUs of the kind `gpu`, or for one GPU if the
    stage runs on the CPU. A part has at least one document.
    """
    if max_hours is None:
        return 1
    gpus = max(1, evaluation.gpus)
    hours = cost_of(evaluation.work, gpus, gpu).gpu_hours / gpus
    return max(1, min(ceil(hours / max_hours), _documents(evaluation)))


def divided(evaluation: Stage, count: int) -> Stage:
    """Return the stage that merges `count` parts of an evaluation, which are its inputs."""
    if count == 1:
        return evaluation
    request, work = evaluation.request, evaluation.work
    assert isinstance(request, AnsweringRequest)
    assert isinstance(work, Answering)
    parts = []
    for index in range(1, count + 1):
        part = AnswerPart(index=index, count=count)
        share = ((length, len(part.documents(total))) for length, total in work.prompts)
        haystack = work.prompts_per_haystack
        parts.append(
            replace(
                evaluation,
                name=f"{evaluation.name}.part{index}of{count}",
                request=request.model_copy(update={"division": part}),
                work=replace(
                    work,
                    prompts=tuple((length, n) for length, n in share if n),
                    prompts_per_haystack=haystack and len(part.documents(haystack)),
                ),
            )
        )
    merged = MergedParts(folders=tuple(part.location for part in parts))
    tokens = work.expected_new_tokens * sum(total for _, total in work.prompts)
    return replace(
        evaluation,
        request=request.model_copy(update={"division": merged}),
        inputs=(*evaluation.inputs, *parts),
        work=Writing(bytes=float(_BYTES_PER_ANSWER_TOKEN * tokens)),
        gpus=0,
    )


def _documents(evaluation: Stage) -> int:
    """Return the number of documents that parts can divide: of problems, or of prompts per set."""
    request, work = evaluation.request, evaluation.work
    assert isinstance(work, Answering)
    if isinstance(request, GenerateRequest):
        return work.prompts[0][1] // request.config.repeats
    assert isinstance(request, EvaluateRequest)
    assert request.tasks is not None
    return work.prompts[0][1] // len(request.tasks)
