"""One function per kind of stage that makes data or a checkpoint; `evaluations` has the others.

Each returns a stage with its request and its amount of work. A stage's request is the same as one
that a user would make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from amnesia_bench.config.data_schema import DataConfig, HubSource, SyntheticSource
from amnesia_bench.config.experiment_schema import TrainingStep
from amnesia_bench.config.load import load_data, load_model, load_training
from amnesia_bench.config.schema import Variant
from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.costs.work import Answering, Training, Weights, Writing
from amnesia_bench.data.synthesize import ROWS
from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.requests.checkpoints import (
    ConvertRequest,
    DownloadRequest,
    InitializeRequest,
    MeasureRequest,
    RandomTokens,
    RankedLayers,
    RestoreRequest,
    SelectLayersRequest,
)
from amnesia_bench.requests.data import (
    ImportRowsRequest,
    PrepareRequest,
    SynthesizeRowsRequest,
    SynthesizeTokenizerRequest,
)
from amnesia_bench.requests.recall import (
    RankLayersRequest,
)
from amnesia_bench.requests.training import TrainRequest
from amnesia_bench.store.hashing import sha256_of

_BYTES_PER_WORD, _WORDS_PER_PROBLEM = 6, 80
# For estimates: five texts of 2,048 tokens, for pre, post and up to ten steps back.
_MEASURED_PROMPTS = ((2048, 5 * 12),)
_HUB_TOKENS = 1e9

# Cached because loading a config takes 50 ms, and many stages share one.
_data, _model, _training = cache(load_data), cache(load_model), cache(load_training)


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


def imported(reader: str, path: str) -> Stage:
    """Return the stage that copies a user's file into the store; its id depends on the contents.

    `reader` is the name in `Profile.files`.

    Raises:
        UserError: the path is not that of a file.
    """
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        what = "a folder, not a file" if file.is_dir() else "no such file"
        raise UserError(
            f"profile.files.{reader}={path}: {what}",
            hint=f"Give the path of a file: profile.files.{reader}=/data/rows.jsonl",
        )
    return Stage(
        kind="rows",
        name=f"{reader}{file.suffix}",  # the copy has this suffix, too
        request=ImportRowsRequest(file=file, sha256=sha256_of(file)),
        inputs=(),
        work=Writing(bytes=float(file.stat().st_size)),
    )


def file_of(rows: Stage) -> Path:
    """Return the location of the file of rows that a stage writes."""
    name = rows.request.copy_name if isinstance(rows.request, ImportRowsRequest) else ROWS
    return rows.location / name


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


def trained_on(checkpoint: Stage) -> frozenset[str]:
    """Return the data sources of the last training of a checkpoint; none for a download.

    A restored or converted checkpoint behaves like the last of its inputs that was trained.
    """
    if isinstance(checkpoint.work, Training):
        return frozenset(checkpoint.work.run.train.mixture)
    models = [read for read in checkpoint.inputs if read.shape is not None]
    return trained_on(models[-1]) if models else frozenset()


def data(
    config: str, overrides: Sequence[str], tokenizer: Stage, rows: Stage | None = None
) -> Stage:
    """Return the stage that tokenizes a data source and packs it into sequences.

    `rows` is the stage with a user's file that replaces the source of the config.
    """
    loaded = _data(config, tuple(overrides))
    files = () if rows is None else (rows,)
    return Stage(
        kind="data",
        name=config,
        request=PrepareRequest(
            config=loaded, tokenizer=tokenizer.location, inputs=tuple(map(file_of, files))
        ),
        inputs=unique_stages(tokenizer, *files),
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
        inputs=unique_stages(init, *data.values(), *([] if teacher is None else [teacher])),
        shape=init.shape,
        work=Training(run=run, shape=shape_of(init)),
    )


def unique_stages(*stages: Stage) -> tuple[Stage, ...]:
    """Return the stages without duplicates, in order."""
    return tuple({stage.id: stage for stage in stages}.values())


def _data_bytes(config: DataConfig) -> float:
    """Return the approximate size of prepared data in bytes."""
    source = config.source
    if isinstance(source, SyntheticSource):
        return 8.0 * source.rows * (source.words or _WORDS_PER_PROBLEM)
    tokens = source.tokens if isinstance(source, HubSource) else None
    return 4.0 * (tokens or _HUB_TOKENS)


def converted(
    shape: str, teacher: Stage, student: Stage | None, seed: int, selection: Stage | None = None
) -> Stage:
    """Return the stage that converts a teacher to the student for hidden-state alignment.

    With a trained `student`, it returns the stage that creates the hybrid instead. `selection` is
    the stage that selects its softmax layers; None keeps those of the shape.
    """
    stage: Literal[1, 2] = 1 if student is None else 2
    layers = None if selection is None else selection.location / SelectLayersRequest.out_file
    return Stage(
        kind="converted",
        name=f"{shape}-stage{stage}-s{seed}",
        request=ConvertRequest(
            teacher=teacher.location,
            model=_model(shape),
            stage=stage,
            student=None if student is None else student.location,
            seed=seed,
            layers=layers,
        ),
        inputs=unique_stages(
            teacher,
            *([] if student is None else [student]),
            *([] if selection is None else [selection]),
        ),
        shape=shape,
        work=Weights(shape=shape),
    )


def measurement(pre: Stage, post: Stage, variant: Variant, data: Stage | None) -> Stage:
    """Return the stage that measures what the rule of a variant needs, on `data`.

    Without `data`, it measures on random tokens.
    """
    tokens = RandomTokens() if data is None else None
    request = MeasureRequest(
        pre=pre.location,
        post=post.location,
        variant=variant,
        data=None if data is None else data.location,
        random_tokens=tokens,
    )
    return Stage(
        kind="measurement",
        name=f"{post.name}-{variant.name}",
        request=request,
        inputs=unique_stages(pre, post, *([] if data is None else [data])),
        work=Answering(shape=shape_of(post), prompts=_MEASURED_PROMPTS, new_tokens=1),
    )


def restored(
    pre: Stage, post: Stage, variant: Variant, ranked: tuple[int, Stage] | None,
    measured: Stage | None,
) -> Stage:  # fmt: skip
    """Return the stage that restores weights of `pre` in a copy of `post`.

    With `ranked`, a count and a ranking, only the first `count` layers of the ranking are restored.
    `measured` is the stage that measures what the variant's rule needs.
    """
    layers = None
    if ranked is not None:
        count, ranking = ranked
        file = ranking.location / RankLayersRequest.out_file
        layers = RankedLayers(count=count, file=file)
    values = None if measured is None else measured.location / MeasureRequest.out_file
    return Stage(
        kind="restored",
        name=f"{post.name}-{variant.name}",
        request=RestoreRequest(
            pre=pre.location,
            post=post.location,
            variant=variant,
            ranked_layers=layers,
            measured=values,
            # No step back may be needed, and then the row is that of post.
            allow_noop=measured is not None,
        ),
        inputs=unique_stages(
            pre,
            post,
            *([] if ranked is None else [ranked[1]]),
            *([] if measured is None else [measured]),
        ),
        shape=post.shape,
        work=Weights(shape=shape_of(post)),
    )
