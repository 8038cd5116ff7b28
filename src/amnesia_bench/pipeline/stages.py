"""One function per kind of stage, which returns a stage with its request and its amount of work.

A stage's request is the same as one that a user would make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

from amnesia_bench.config.data_schema import DataConfig, SyntheticSource
from amnesia_bench.config.eval_schema import EvalConfig
from amnesia_bench.config.experiment_schema import RecallPlan, TrainingStep
from amnesia_bench.config.load import load_data, load_model, load_training
from amnesia_bench.config.schema import Variant
from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.costs.work import Answering, Training, Weights, Writing
from amnesia_bench.data.synthesize import ROWS
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.reasoning.code.livecodebench import ProgramScorer
from amnesia_bench.reasoning.task import ReasoningTask
from amnesia_bench.reasoning.tasks import load_eval
from amnesia_bench.requests.checkpoints import (
    ConvertRequest,
    DownloadRequest,
    InitializeRequest,
    RankedLayers,
    RestoreRequest,
)
from amnesia_bench.requests.data import (
    PrepareRequest,
    SynthesizeRowsRequest,
    SynthesizeTokenizerRequest,
)
from amnesia_bench.requests.engines import EngineChoice
from amnesia_bench.requests.reasoning import GenerateRequest, ScoreRequest
from amnesia_bench.requests.recall import (
    BuildPromptsRequest,
    EvaluateRequest,
    HubEssays,
    RankLayersRequest,
)
from amnesia_bench.requests.training import TrainRequest

_BYTES_PER_WORD, _WORDS_PER_PROBLEM = 6, 80
# For estimates: about 4,300 prompts of FDA, SWDE and Ruler-QA-SQuAD for each of 28 ablated layers,
# with documents of about 2,000 tokens.
RANKING_PROMPTS = ((2048, 28 * 4300),)
_HUB_TOKENS = 1e9
_QUESTION_TOKENS = 128  # for estimates; most questions are shorter

# Cached because loading a config takes 50 ms, and many stages share one.
_data, _eval = cache(load_data), cache(load_eval)
_model, _training = cache(load_model), cache(load_training)


def tokenizer(seed: int) -> Stage:
    """Return the stage that trains a tokenizer on generated texts."""
    return Stage(
        kind="tokenizer",
        name=f"generated-s{seed}",
        request=SynthesizeTokenizerRequest(seed=seed),
        inputs=(),
        work=Writing(bytes=1e5),
    )


def rows(source: SyntheticSource) -> Stage:
    """Return the stage that generates the rows of a synthetic source."""
    words = source.words or _WORDS_PER_PROBLEM
    return Stage(
        kind="rows",
        name=f"{source.generator}-s{source.seed}",
        request=SynthesizeRowsRequest(source=source),
        inputs=(),
        work=Writing(bytes=float(source.rows * words * _BYTES_PER_WORD)),
    )


def downloaded(repository: str, shape: str) -> Stage:
    """Return the stage that downloads a checkpoint from the hub."""
    return Stage(
        kind="download",
        name=repository.rpartition("/")[2],
        request=DownloadRequest(repository=repository),
        inputs=(),
        shape=shape,
        work=Weights(shape=shape),
    )


def initial(shape: str, tokenizer: Stage, seed: int) -> Stage:
    """Return the stage that creates a model with random weights."""
    return Stage(
        kind="initial",
        name=f"{shape}-s{seed}",
        request=InitializeRequest(model=_model(shape), tokenizer=tokenizer.location, seed=seed),
        inputs=(tokenizer,),
        shape=shape,
        work=Weights(shape=shape),
    )


def shape_of(checkpoint: Stage) -> str:
    """Return the name of the config in configs/model with the shape of a stage's checkpoint."""
    assert checkpoint.shape is not None, checkpoint.kind
    return checkpoint.shape


def data(config: str, overrides: Sequence[str], tokenizer: Stage) -> Stage:
    """Return the stage that tokenizes a data source and packs it into sequences."""
    loaded = _data(config, tuple(overrides))
    return Stage(
        kind="data",
        name=config,
        request=PrepareRequest(config=loaded, tokenizer=tokenizer.location),
        inputs=(tokenizer,),
        work=Writing(bytes=_data_bytes(loaded)),
    )


def training_of(step: TrainingStep, overrides: Sequence[str], seed: int) -> TrainingRun:
    """Return the training configuration of a step, with the profile's `overrides` and a seed."""
    run = _training(step.train, (*step.overrides, *overrides))
    return run.model_copy(update={"train": run.train.model_copy(update={"seed": seed})})


def trained(
    step: TrainingStep, run: TrainingRun, init: Stage, data: Mapping[str, Stage],
    teacher: Stage | None,
) -> Stage:  # fmt: skip
    """Return the stage that executes a training step, starting from the checkpoint of `init`.

    `data` maps each source of the mixture to the stage that prepares it.
    """
    return Stage(
        kind="trained",
        name=f"{step.train}-s{run.train.seed}",
        request=TrainRequest(
            run=run,
            init=init.location,
            data={source: stage.location for source, stage in data.items()},
            teacher=None if teacher is None else teacher.location,
        ),
        inputs=_unique(init, *data.values(), *([] if teacher is None else [teacher])),
        shape=init.shape,
        work=Training(run=run, shape=shape_of(init)),
    )


def _unique(*stages: Stage) -> tuple[Stage, ...]:
    return tuple({stage.id: stage for stage in stages}.values())


def _data_bytes(config: DataConfig) -> float:
    """Return the approximate size of prepared data in bytes."""
    source = config.source
    if isinstance(source, SyntheticSource):
        return 8.0 * source.rows * (source.words or _WORDS_PER_PROBLEM)
    return 4.0 * _HUB_TOKENS


def converted(shape: str, teacher: Stage, student: Stage | None, seed: int) -> Stage:
    """Return the stage that converts a teacher to the student for hidden-state alignment.

    With a trained `student`, it returns the stage that creates the hybrid instead.
    """
    stage: Literal[1, 2] = 1 if student is None else 2
    return Stage(
        kind="converted",
        name=f"{shape}-stage{stage}-s{seed}",
        request=ConvertRequest(
            teacher=teacher.location,
            model=_model(shape),
            stage=stage,
            student=None if student is None else student.location,
            seed=seed,
        ),
        inputs=_unique(teacher, *([] if student is None else [student])),
        shape=shape,
        work=Weights(shape=shape),
    )


def ranking(checkpoint: Stage) -> Stage:
    """Return the stage that ranks softmax layers by the retrieval accuracy lost without each."""
    return Stage(
        kind="ranking",
        name=checkpoint.name,
        request=RankLayersRequest(checkpoint=checkpoint.location),
        inputs=(checkpoint,),
        work=Answering(shape=shape_of(checkpoint), prompts=RANKING_PROMPTS, new_tokens=48),
    )


def restored(
    pre: Stage, post: Stage, variant: Variant, count: int | None, ranked: Stage | None
) -> Stage:
    """Return the stage that restores weights of `pre` in a copy of `post`.

    With a count and a ranking, only the first `count` layers of the ranking are restored.
    """
    layers = None
    if count is not None and ranked is not None:
        file = ranked.location / RankLayersRequest.out_file
        layers = RankedLayers(count=count, file=file)
    return Stage(
        kind="restored",
        name=f"{post.name}-{variant.name}",
        request=RestoreRequest(
            pre=pre.location, post=post.location, variant=variant, ranked_layers=layers
        ),
        inputs=_unique(pre, post, *([] if ranked is None else [ranked])),
        shape=post.shape,
        work=Weights(shape=shape_of(post)),
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
            haystack=HubEssays() if haystack is None else haystack.location / ROWS,
        ),
        inputs=_unique(tokenizer, *([] if haystack is None else [haystack])),
        work=Writing(bytes=8e4 * len(plan.tasks) * len(plan.lengths)),
    )


def recall(checkpoint: Stage, prompts: Stage, part: RecallPlan, engine: EngineChoice) -> Stage:
    """Return the stage that evaluates a checkpoint on the tasks and lengths in `part`."""
    count = len(part.tasks) * part.samples
    return Stage(
        kind="recall",
        name=f"{checkpoint.name}.{'+'.join(map(str, part.lengths))}",
        request=EvaluateRequest(
            checkpoint=checkpoint.location,
            prompts=prompts.location,
            tasks=part.tasks,
            lengths=part.lengths,
            max_new_tokens=part.max_new_tokens,
            engine=engine,
        ),
        inputs=_unique(checkpoint, prompts),
        work=Answering(
            shape=shape_of(checkpoint),
            prompts=tuple((length, count) for length in part.lengths),
            new_tokens=part.max_new_tokens,
        ),
    )


def answers(
    checkpoint: Stage, task: ReasoningTask, config: EvalConfig, problems: Stage | None,
    engine: EngineChoice,
) -> Stage:  # fmt: skip
    """Return the stage that generates a checkpoint's answers to a benchmark.

    The problems are the rows of the stage `problems`; if it is None, they are downloaded.
    """
    count = task.source.rows
    if problems is not None:
        assert isinstance(problems.request, SynthesizeRowsRequest)
        count = problems.request.source.rows
    return Stage(
        kind="answers",
        name=f"{checkpoint.name}.{task.name}",
        request=GenerateRequest(
            checkpoint=checkpoint.location,
            task=task.name,
            config=config,
            data=None if problems is None else problems.location / ROWS,
            engine=engine,
        ),
        inputs=_unique(checkpoint, *([] if problems is None else [problems])),
        work=Answering(
            shape=shape_of(checkpoint),
            prompts=((_QUESTION_TOKENS, count * config.repeats),),
            new_tokens=config.max_new_tokens,
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
