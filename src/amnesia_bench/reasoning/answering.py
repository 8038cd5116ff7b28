"""Generating the answers to a reasoning benchmark: k per problem, resumable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amnesia_bench.config.eval_schema import CodeEvalConfig, EvalConfig
from amnesia_bench.inference.generation import generate_missing
from amnesia_bench.inference.protocol import Engine, Request, sample_seed
from amnesia_bench.reasoning.run_record import run_identity
from amnesia_bench.reasoning.tasks.task import ProblemSet, ReasoningTask
from amnesia_bench.records.evaluation import Generation, SampleKey, Sampling
from amnesia_bench.records.reasoning import ReasoningRun
from amnesia_bench.tokenizers.chat_format import PromptFormat, prompt_tokens


@dataclass(frozen=True, kw_only=True)
class ModelUnderTest:
    """Who answers: the name and method for the table, and the identity of the checkpoint."""

    name: str
    method: str
    checkpoint: str


@dataclass(frozen=True, kw_only=True)
class AnswerPlan:
    """Who answers, how answers are drawn, and how problems become prompts."""

    model: ModelUnderTest
    config: EvalConfig
    layout: PromptFormat


def generate_answers(
    engine: Engine,
    tokenizer: Any,
    task: ReasoningTask,
    documents: ProblemSet,
    plan: AnswerPlan,
    folder: Path,
) -> tuple[Generation, ...]:
    """Answer every problem `repeats` times; resumable, see `inference.generation`."""
    run = _describe(task, documents, plan)
    requests = _requests(tokenizer, task, documents, plan)
    return generate_missing(engine, requests, folder, identity=run_identity(run))


def window_of(config: EvalConfig) -> int | None:
    """Return which problems of its benchmark a config asks for; None where there is no choice."""
    return config.window if isinstance(config, CodeEvalConfig) else None


def _describe(task: ReasoningTask, documents: ProblemSet, plan: AnswerPlan) -> ReasoningRun:
    config, think = plan.config, plan.config.think
    return ReasoningRun(
        task=task.name,
        model=plan.model.name,
        method=plan.model.method,
        checkpoint=plan.model.checkpoint,
        data=documents.origin,
        documents_sha256=documents.sha256,
        documents=len(documents.rows),
        documents_available=documents.available,
        benchmark_documents=window_of(config) or task.source.rows,
        repeats=config.repeats,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        seed=config.seed,
        chat_template=plan.layout.sha256,
        think_open=None if think is None else think.open,
        think_close=None if think is None else think.close,
        thinking_opened=plan.layout.opens_thinking,
        window=window_of(config),
        seconds_per_test=config.seconds_per_test if isinstance(config, CodeEvalConfig) else None,
        checker=config.checker.value if isinstance(config, CodeEvalConfig) else None,
    )


def _requests(
    tokenizer: Any, task: ReasoningTask, documents: ProblemSet, plan: AnswerPlan
) -> list[Request]:
    """Return the requests, the repeats of a problem one after the other: equal prompts batch."""
    config = plan.config
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        stop=(),
    )
    requests = []
    for doc, row in enumerate(documents.rows):
        tokens = prompt_tokens(tokenizer, plan.layout, task.message(row))
        for repeat in range(config.repeats):
            key = SampleKey(task=task.name, doc=doc, repeat=repeat)
            seed = None if sampling.greedy else sample_seed(config.seed, key)
            requests.append(Request(key=key, tokens=tokens, sampling=sampling, seed=seed))
    return requests
