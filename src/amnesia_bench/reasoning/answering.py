"""Generate k answers to each problem of a reasoning benchmark; interrupted runs can resume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amnesia_bench.config.eval_schema import CodeEvalConfig, EvalConfig
from amnesia_bench.errors import UserError
from amnesia_bench.inference.candidates import open_candidate
from amnesia_bench.inference.generation import generate_missing
from amnesia_bench.inference.load_engine import open_engine
from amnesia_bench.inference.merging import PartsEngine
from amnesia_bench.inference.protocol import Engine, PromptRequest, sample_seed
from amnesia_bench.reasoning.documents import task_documents, window_of
from amnesia_bench.reasoning.run_record import run_identity
from amnesia_bench.reasoning.task import ProblemSet, ReasoningTask
from amnesia_bench.reasoning.tasks import task_named
from amnesia_bench.records.evaluation import Generation, SampleKey, Sampling
from amnesia_bench.records.reasoning import ReasoningRun
from amnesia_bench.requests.answering import AnswerPart, MergedParts
from amnesia_bench.requests.reasoning import GenerateRequest
from amnesia_bench.tokenizers.chat_format import PromptFormat, prompt_format, prompt_tokens

_MAX_TEMPLATE_CHARACTERS = 1 << 20  # the path may name a device with unlimited output


@dataclass(frozen=True, kw_only=True)
class BenchmarkAnswers:
    """The answers of a run, or of a part of it, in `folder`, in the order of the problems."""

    folder: Path
    run: ReasoningRun
    generations: tuple[Generation, ...]


@dataclass(frozen=True, kw_only=True)
class AnswerPlan:
    """The checkpoint that answers, the sampling settings, and the prompt format.

    `model` and `method` are the labels of the resulting cells; `checkpoint` is the identity of the
    checkpoint. `part` restricts the answers to those of one part; None generates all.
    """

    model: str
    method: str
    checkpoint: str
    config: EvalConfig
    layout: PromptFormat
    part: AnswerPart | None = None


def generate(request: GenerateRequest, out: Path) -> BenchmarkAnswers:
    """Generate a model's answers to a benchmark; the same call resumes an interrupted run.

    Args:
        request: the model, the benchmark, and the sampling settings.
        out: the folder to which the answers are written.

    Raises:
        UserError: a value of the request is wrong, a prompt does not fit the model's context,
            `out` contains the answers of another run, or a part is missing or belongs to another
            run; nothing was written.
        BusyError: another process is writing to `out`.
        StageFailedError: the checkpoint was changed during the run; earlier answers are kept.
        MissingEnvironmentError: the hub cannot be reached, or vLLM is not installed.
    """
    task, config = task_named(request.task), request.config
    if type(config) is not task.config:
        raise UserError(
            f"config: is a {type(config).__name__}, but {task.name} needs a {task.config.__name__}",
            hint=f"load_eval({task.name!r}) returns one.",
        )
    template = None if request.chat_template is None else _read_template(request.chat_template)
    problems = task_documents(task, request.data, request.limit, window_of(config))
    candidate = open_candidate(request.checkpoint, request.method)
    division = request.division
    plan = AnswerPlan(
        model=request.checkpoint.resolve().name,
        method=request.method,
        checkpoint=candidate.parent.identity,
        config=config,
        layout=prompt_format(
            candidate.tokenizer,
            chat=config.chat_template,
            template=template,
            think=config.think,
        ),
        part=division if isinstance(division, AnswerPart) else None,
    )
    engine: Engine
    if isinstance(division, MergedParts):
        engine = PartsEngine(division.folders, run_identity(_describe(task, problems, plan)))
    else:
        engine = open_engine(request.engine, candidate)
    return answer_problems(engine, candidate.tokenizer, task, problems, plan, out)


def answer_problems(
    engine: Engine,
    tokenizer: Any,
    task: ReasoningTask,
    problems: ProblemSet,
    plan: AnswerPlan,
    folder: Path,
) -> BenchmarkAnswers:
    """Generate `repeats` answers to every problem; `inference.generation` describes resuming.

    `run.json` describes the whole run, also in the folder of a part.
    """
    run = _describe(task, problems, plan)
    requests = _requests(tokenizer, task, problems, plan)
    generations = generate_missing(engine, requests, folder, identity=run_identity(run))
    return BenchmarkAnswers(folder=folder, run=run, generations=generations)


def _read_template(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_TEMPLATE_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--chat-template {path}: cannot be read ({error})") from error
    if len(text) > _MAX_TEMPLATE_CHARACTERS:
        raise UserError(
            f"--chat-template {path}: is longer than {_MAX_TEMPLATE_CHARACTERS:,} characters"
        )
    return text


def _describe(task: ReasoningTask, problems: ProblemSet, plan: AnswerPlan) -> ReasoningRun:
    config, think = plan.config, plan.config.think
    return ReasoningRun(
        task=task.name,
        model=plan.model,
        method=plan.method,
        checkpoint=plan.checkpoint,
        data=problems.origin,
        documents_sha256=problems.sha256,
        documents=len(problems.rows),
        documents_available=problems.available,
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
    tokenizer: Any, task: ReasoningTask, problems: ProblemSet, plan: AnswerPlan
) -> list[PromptRequest]:
    """Return one request per answer; repeats are adjacent, so equal prompts share a batch."""
    config, total = plan.config, len(problems.rows)
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        stop=(),
    )
    requests = []
    for doc in range(total) if plan.part is None else plan.part.documents(total):
        tokens = prompt_tokens(tokenizer, plan.layout, task.message(problems.rows[doc]))
        for repeat in range(config.repeats):
            key = SampleKey(task=task.name, doc=doc, repeat=repeat)
            seed = None if sampling.greedy else sample_seed(config.seed, key)
            requests.append(PromptRequest(key=key, tokens=tokens, sampling=sampling, seed=seed))
    return requests
