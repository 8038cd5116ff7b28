"""The stages by kind: each the command that is typed by hand, and the settings that decide it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from amnesia_bench.config.data_schema import DataConfig, SyntheticSource
from amnesia_bench.config.eval_schema import EvalConfig
from amnesia_bench.config.experiment_schema import RecallPlan, TrainingStep
from amnesia_bench.config.fields import deciding
from amnesia_bench.config.load import load_model_file, load_option
from amnesia_bench.config.schema import Variant
from amnesia_bench.config.train_schema import TrainingRun, load_training
from amnesia_bench.costs.work import Answering, Training, Weights, Writing
from amnesia_bench.data.synthesize import ROWS
from amnesia_bench.pipeline.stage import Argument, Input, Output, Stage
from amnesia_bench.reasoning.code.livecodebench import ProgramScorer
from amnesia_bench.reasoning.task import ReasoningTask

RANKING = "ranking.json"
_BYTES_PER_WORD, _WORDS_PER_PROBLEM = 6, 80
# FDA, SWDE and Ruler-QA-SQuAD for each layer ablated; documents of about 2,000 tokens.
RANKING_PROMPTS = ((2048, 28 * 4300),)
_HUB_TOKENS = 1e9
_QUESTION_TOKENS = 128  # for estimates: most questions are shorter
_OUT = ("--out", Output())
# Of the engine, as they are typed: {"--attn-logits-scaling": "hype 500"}.
Options = Mapping[str, str]

# Composing takes 50 ms, and many stages share a config.
option, _training = cache(load_option), cache(load_training)


def tokenizer(seed: int) -> Stage:
    """Train the tokenizer of generated texts."""
    return Stage(
        kind="tokenizer",
        name=f"generated-s{seed}",
        arguments=("data", "synthesize", "tokenizer", "--seed", str(seed), *_OUT),
        settings={"seed": seed},
        work=Writing(bytes=1e5),
    )


def rows(source: SyntheticSource) -> Stage:
    """Write generated rows."""
    words = () if source.words is None else ("--words", str(source.words))
    return Stage(
        kind="rows",
        name=f"{source.generator}-s{source.seed}",
        arguments=(
            *("data", "synthesize", source.generator, "--rows", str(source.rows), *words),
            *("--seed", str(source.seed), *_OUT),
        ),
        settings=deciding(source),
        work=Writing(
            bytes=float(source.rows * (source.words or _WORDS_PER_PROBLEM) * _BYTES_PER_WORD)
        ),
    )


def download(repository: str, shape: str) -> Stage:
    """Fetch a checkpoint from the hub."""
    return Stage(
        kind="download",
        name=repository.rpartition("/")[2],
        arguments=("download", repository, *_OUT),
        settings={"repository": repository},
        shape=shape,
        work=Weights(shape=shape),
    )


def initial(shape: str, tokenizer: Stage, seed: int) -> Stage:
    """Make a model with random weights."""
    return Stage(
        kind="initial",
        name=f"{shape}-s{seed}",
        arguments=(
            *("init", "--model", shape, "--tokenizer", Input(stage=tokenizer)),
            *("--seed", str(seed), *_OUT),
        ),
        settings={"model": load_model_file(shape), "seed": seed},
        shape=shape,
        work=Weights(shape=shape),
    )


def shape_of(checkpoint: Stage) -> str:
    """Return the file of configs/model that a stage's checkpoint has the shape of."""
    assert checkpoint.shape is not None, checkpoint.kind
    return checkpoint.shape


def data(config: str, overrides: Sequence[str], tokenizer: Stage) -> Stage:
    """Turn a source of data into sequences of tokens."""
    loaded = option("data", config, tuple(overrides), DataConfig)
    return Stage(
        kind="data",
        name=config,
        arguments=(
            *("data", "prepare", config, "--tokenizer", Input(stage=tokenizer), *_OUT),
            *overrides,
        ),
        settings=deciding(loaded),
        work=Writing(bytes=_data_bytes(loaded)),
    )


def training_of(step: TrainingStep, overrides: Sequence[str], seed: int) -> TrainingRun:
    """Return what a step trains, with what its profile changes and a seed."""
    run = _training(step.train, (*step.overrides, *overrides))
    return run.model_copy(update={"train": run.train.model_copy(update={"seed": seed})})


def trained(
    step: TrainingStep, overrides: Sequence[str], seed: int, init: Stage, data: Mapping[str, Stage],
    teacher: Stage | None,
) -> Stage:  # fmt: skip
    """Train a stage of HypeNet, or fine-tune; `data` by source."""
    run = training_of(step, overrides, seed)
    given: list[Argument] = []
    for source, stage in data.items():
        given += ["--data", Input(stage=stage, prefix=f"{source}=")]
    if teacher is not None:
        given += ["--teacher", Input(stage=teacher)]
    return Stage(
        kind="trained",
        name=f"{step.train}-s{seed}",
        arguments=(
            *("train", "--config", step.train, "--init", Input(stage=init), *given, *_OUT),
            *(*step.overrides, *overrides, f"train.seed={seed}"),
        ),
        settings=deciding(run),
        shape=init.shape,
        work=Training(run=run, shape=shape_of(init)),
    )


def _data_bytes(config: DataConfig) -> float:
    """Return about how many bytes prepared data take."""
    source = config.source
    if isinstance(source, SyntheticSource):
        return 8.0 * source.rows * (source.words or _WORDS_PER_PROBLEM)
    return 4.0 * _HUB_TOKENS


def converted(shape: str, teacher: Stage, student: Stage | None, seed: int) -> Stage:
    """Make the student of alignment, or with its mixers the hybrid."""
    size = shape.removeprefix("hypenet_")
    step = "1" if student is None else "2"
    given = () if student is None else ("--student", Input(stage=student))
    return Stage(
        kind="converted",
        name=f"{shape}-stage{step}-s{seed}",
        arguments=(
            *("convert", "--teacher", Input(stage=teacher), "--size", size, "--stage", step),
            *(*given, "--seed", str(seed), *_OUT),
        ),
        settings={"model": load_model_file(shape), "stage": step, "seed": seed},
        shape=shape,
        work=Weights(shape=shape),
    )


def ranking(checkpoint: Stage) -> Stage:
    """Rank softmax layers by what retrieval loses without them."""
    return Stage(
        kind="ranking",
        name=checkpoint.name,
        arguments=(
            *("rank-layers", "--checkpoint", Input(stage=checkpoint)),
            *("--out", Output(file=RANKING)),
        ),
        settings={},
        work=Answering(shape=shape_of(checkpoint), prompts=RANKING_PROMPTS, new_tokens=48),
    )


def top_layers(count: int, order: Stage) -> Input:
    """Return the argument that chooses the first layers of a ranking."""
    return Input(stage=order, prefix=f"top{count}@", file=RANKING)


def restored(
    pre: Stage, post: Stage, variant: Variant, overrides: Sequence[str], top: Input | None
) -> Stage:
    """Put weights of `pre` back into `post`; `top` says in how many layers of which ranking."""
    layers: tuple[Argument, ...] = () if top is None else ("--layers", top)
    return Stage(
        kind="restored",
        name=f"{post.name}-{variant.name}",
        arguments=(
            *("restore", "--pre", Input(stage=pre), "--post", Input(stage=post)),
            *("--variant", variant.name, *layers, *_OUT, *overrides),
        ),
        settings=deciding(variant),
        shape=post.shape,
        work=Weights(shape=shape_of(post)),
    )


def prompts(plan: RecallPlan, tokenizer: Stage, haystack: Stage | None) -> Stage:
    """Build the NIAH prompts that all checkpoints with a tokenizer share."""
    hay: Argument = "hub" if haystack is None else Input(stage=haystack, file=ROWS)
    tasks, lengths = ",".join(plan.tasks), ",".join(map(str, plan.lengths))
    return Stage(
        kind="prompts",
        name=f"niah-{'hub' if haystack is None else haystack.name}",
        arguments=(
            *("niah", "build", "--tokenizer", Input(stage=tokenizer), "--haystack", hay),
            *("--tasks", tasks, "--lengths", lengths, "--samples", str(plan.samples), *_OUT),
        ),
        settings={
            "tasks": plan.tasks,
            "lengths": plan.lengths,
            "samples": plan.samples,
            "haystack": None if haystack is not None else "hub",
        },
        work=Writing(bytes=8e4 * len(plan.tasks) * len(plan.lengths)),
    )


def recall(checkpoint: Stage, asked: Stage, part: RecallPlan, options: Options) -> Stage:
    """Let a checkpoint look for the needles of a part of the prompts."""
    count = len(part.tasks) * part.samples
    tasks, lengths = ",".join(part.tasks), ",".join(map(str, part.lengths))
    return Stage(
        kind="recall",
        name=checkpoint.name,
        arguments=(
            *("eval", "niah", "--checkpoint", Input(stage=checkpoint)),
            *("--prompts", Input(stage=asked)),
            *("--tasks", tasks, "--lengths", lengths),
            *("--max-new-tokens", str(part.max_new_tokens), *_OUT),
            *_typed(options),
        ),
        settings={
            "tasks": part.tasks,
            "lengths": part.lengths,
            "max_new_tokens": part.max_new_tokens,
            "options": dict(options),
        },
        work=Answering(
            shape=shape_of(checkpoint),
            prompts=tuple((length, count) for length in part.lengths),
            new_tokens=part.max_new_tokens,
        ),
    )


def _typed(options: Options) -> tuple[str, ...]:
    return tuple(word for option in options.items() for word in option)


def answers(
    checkpoint: Stage, task: ReasoningTask, config: EvalConfig, overrides: Sequence[str],
    problems: Stage | None, options: Options,
) -> Stage:  # fmt: skip
    """Let a checkpoint answer a benchmark; without `problems` they are the hub's."""
    given: tuple[Argument, ...] = ()
    count = task.source.rows
    if problems is not None:
        given = ("--data", Input(stage=problems, file=ROWS))
        count = problems.settings["rows"]
    return Stage(
        kind="answers",
        name=f"{checkpoint.name}-{task.name}",
        arguments=(
            *("generate", "--checkpoint", Input(stage=checkpoint), "--task", task.name),
            *given,
            *_OUT,
            *overrides,
            *_typed(options),
        ),
        settings={"task": task.name, "eval": deciding(config), "options": dict(options)},
        work=Answering(
            shape=shape_of(checkpoint),
            prompts=((_QUESTION_TOKENS, count * config.repeats),),
            new_tokens=config.max_new_tokens,
        ),
    )


def scores(answered: Stage, task: ReasoningTask) -> Stage:
    """Judge answers; programs run several at once."""
    programs = isinstance(next(iter(task.scorers.values())), ProgramScorer)
    return Stage(
        kind="scores",
        name=answered.name,
        arguments=("score", Input(stage=answered), *_OUT),
        settings={},
        work=Writing(bytes=1e6),
        workers_option="--workers" if programs else None,
    )
