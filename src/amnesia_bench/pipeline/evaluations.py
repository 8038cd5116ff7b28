"""One function per kind of stage that evaluates a checkpoint, or builds prompts for evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from amnesia_bench.config.eval_schema import EvalConfig
from amnesia_bench.config.experiment_schema import RecallPlan
from amnesia_bench.config.selection_schema import LayerSelectionPlan
from amnesia_bench.costs.answer_lengths import expected_tokens
from amnesia_bench.costs.model_shape import named_shape
from amnesia_bench.costs.work import Answering, Combined, Writing
from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.pipeline.stages import file_of, shape_of, trained_on, unique_stages
from amnesia_bench.reasoning.code.livecodebench import ProgramScorer
from amnesia_bench.reasoning.task import ReasoningTask
from amnesia_bench.reasoning.tasks import load_eval
from amnesia_bench.requests.checkpoints import ScoreLayersRequest, SelectLayersRequest
from amnesia_bench.requests.data import SynthesizeRowsRequest
from amnesia_bench.requests.engines import EngineChoice
from amnesia_bench.requests.reasoning import GenerateRequest, ScoreRequest
from amnesia_bench.requests.recall import (
    BuildPromptsRequest,
    EvaluateRequest,
    HubEssays,
    RankLayersRequest,
)

# For estimates: the approximate length of a task's documents in tokens, and their number. A
# commonsense task reads a document once per possible answer, of which most have four.
_TASK_PROMPTS: Mapping[str, tuple[int, int]] = {
    "fda": (2048, 1102),
    "swde": (1024, 1111),
    "ruler_qa_squad": (4096, 500),
    "arc_challenge": (64, 1172),
    "arc_easy": (64, 2376),
    "hellaswag": (128, 10042),
}
_CHOICES, _EXTRACTED_TOKENS = 4, 48
_QUESTION_TOKENS = 128  # for estimates; most questions are shorter

_eval = cache(load_eval)  # loading a config takes 50 ms, and many stages share one


def ranking(checkpoint: Stage) -> Stage:
    """Return the stage that ranks softmax layers by the retrieval accuracy lost without each."""
    shape = shape_of(checkpoint)
    models = named_shape(shape).layers + 1  # at most: each softmax layer is ablated in turn
    request = RankLayersRequest(checkpoint=checkpoint.location)
    lengths = (_TASK_PROMPTS[task] for task in request.tasks)
    return Stage(
        kind="ranking",
        name=checkpoint.name,
        request=request,
        inputs=(checkpoint,),
        work=Answering(
            shape=shape,
            prompts=tuple((tokens, models * count) for tokens, count in lengths),
            new_tokens=_EXTRACTED_TOKENS,
        ),
    )


def layer_scores(
    teacher: Stage, student: Stage, plan: LayerSelectionPlan, documents: Mapping[str, Stage]
) -> Stage:
    """Return the stage that evaluates a teacher with each layer of its student in turn.

    `documents` are the stages with the documents of tasks; those of other tasks are downloaded.

    Raises:
        UserError: more layers are to be selected than the teacher has.
    """
    shape = shape_of(teacher)
    num_layers = named_shape(shape).layers
    if plan.count > num_layers:
        raise UserError(f"selection.count={plan.count}: {shape} has only {num_layers} layers")
    models = num_layers + 1  # and one without a replaced layer

    def work(tasks: Sequence[str], new_tokens: int, reads: int) -> Answering:
        prompts = []
        for task in tasks:
            tokens, count = _TASK_PROMPTS[task]
            rows = documents[task].request if task in documents else None
            if isinstance(rows, SynthesizeRowsRequest):
                count = rows.source.rows
            prompts.append((tokens, models * count * reads))
        return Answering(shape=shape, prompts=tuple(prompts), new_tokens=new_tokens)

    return Stage(
        kind="layer_scores",
        name=student.name,
        request=ScoreLayersRequest(
            teacher=teacher.location,
            student=student.location,
            retrieval=plan.retrieval,
            commonsense=plan.commonsense,
            data={task: file_of(stage) for task, stage in documents.items()},
        ),
        inputs=unique_stages(teacher, student, *documents.values()),
        work=Combined(
            parts=(
                work(plan.retrieval, _EXTRACTED_TOKENS, reads=1),
                work(plan.commonsense, 1, reads=_CHOICES),
            )
        ),
    )


def selection(scores: Stage, plan: LayerSelectionPlan) -> Stage:
    """Return the stage that selects the softmax layers of a hybrid from scores of all layers."""
    return Stage(
        kind="selection",
        name=scores.name,
        request=SelectLayersRequest(
            scores=scores.location,
            count=plan.count,
            retrieval=plan.retrieval,
            commonsense=plan.commonsense,
        ),
        inputs=(scores,),
        work=Writing(bytes=1e4),
    )


def prompts(plan: RecallPlan, tokenizer: Stage, haystack: Stage | None) -> Stage:
    """Return the stage that builds NIAH prompts for all checkpoints with this tokenizer."""
    return Stage(
        kind="prompts",
        name=f"niah-{'hub' if haystack is None else haystack.name}",
        request=BuildPromptsRequest(
            tokenizer=tokenizer.location,
            tasks=plan.tasks,
            lengths=plan.lengths,
            samples=plan.samples,
            haystack=HubEssays() if haystack is None else file_of(haystack),
            seed=plan.prompt_seed,
        ),
        inputs=unique_stages(tokenizer, *([] if haystack is None else [haystack])),
        work=Writing(bytes=8e4 * len(plan.tasks) * len(plan.lengths)),
    )


def recall(checkpoint: Stage, prompts: Stage, part: RecallPlan, engine: EngineChoice) -> Stage:
    """Return the stage that evaluates a checkpoint on the tasks and lengths in `part`."""
    count = len(part.tasks) * part.samples
    name = f"{checkpoint.name}.{'+'.join(map(str, part.lengths))}"
    if part.tasks_per_stage is not None:
        name = f"{name}.{'+'.join(part.tasks)}"
    return Stage(
        kind="recall",
        name=name,
        request=EvaluateRequest(
            checkpoint=checkpoint.location,
            prompts=prompts.location,
            tasks=part.tasks,
            lengths=part.lengths,
            max_new_tokens=part.max_new_tokens,
            engine=engine,
        ),
        inputs=unique_stages(checkpoint, prompts),
        work=Answering(
            shape=shape_of(checkpoint),
            prompts=tuple((length, count) for length in part.lengths),
            new_tokens=part.max_new_tokens,
            prompts_per_haystack=part.samples,
            engine=engine.name,
        ),
    )


def answers(
    checkpoint: Stage, task: ReasoningTask, config: EvalConfig, problems: Stage | None,
    engine: EngineChoice, limit: int | None = None,
) -> Stage:  # fmt: skip
    """Return the stage that generates a checkpoint's answers to a benchmark.

    The problems are the rows of the stage `problems`; if it is None, they are downloaded. Only the
    first `limit` problems are used; None uses all.
    """
    count = task.source.rows
    if problems is not None and isinstance(problems.request, SynthesizeRowsRequest):
        count = problems.request.source.rows
    count = min(count, limit or count)
    return Stage(
        kind="answers",
        name=f"{checkpoint.name}.{task.name}",
        request=GenerateRequest(
            checkpoint=checkpoint.location,
            task=task.name,
            config=config,
            data=None if problems is None else file_of(problems),
            limit=limit,
            engine=engine,
        ),
        inputs=unique_stages(checkpoint, *([] if problems is None else [problems])),
        work=Answering(
            shape=shape_of(checkpoint),
            prompts=((_QUESTION_TOKENS, count * config.repeats),),
            new_tokens=config.max_new_tokens,
            mean_new_tokens=expected_tokens(task.name, trained_on(checkpoint)),
            repeats=config.repeats,
            engine=engine.name,
        ),
    )


def scores(answers: Stage, task: ReasoningTask) -> Stage:
    """Return the stage that scores answers; it runs generated programs in several processes."""
    return Stage(
        kind="scores",
        name=answers.name,
        request=ScoreRequest(answers=answers.location),
        inputs=(answers,),
        work=Writing(bytes=1e6),
        many_processes=isinstance(next(iter(task.scorers.values())), ProgramScorer),
    )


def evaluation(task: ReasoningTask, overrides: Sequence[str]) -> EvalConfig:
    """Return the config of a reasoning benchmark, with overrides applied."""
    return _eval(task.name, tuple(overrides))
