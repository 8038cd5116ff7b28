"""Convert a stage's request to the equivalent `amnesia` command line.

The stage's log begins with this command line, and users can run it themselves. A config is written
as its name, followed by an override for each value that differs. Parsing the command line gives an
equal request (tests/unit/pipeline/test_command_lines.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache, singledispatch
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from amnesia_bench.config.files import options
from amnesia_bench.config.load import load_data, load_training, load_variant
from amnesia_bench.config.schema import Variant
from amnesia_bench.reasoning.tasks import load_eval
from amnesia_bench.requests.analysis import (
    AnalyzeRequest,
    AttentionMaps,
    Autocorrelations,
    Divergence,
    Gradients,
)
from amnesia_bench.requests.answering import AnsweringRequest, AnswerPart
from amnesia_bench.requests.base import StageRequest
from amnesia_bench.requests.checkpoints import (
    ConvertRequest,
    DownloadRequest,
    InitializeRequest,
    MeasureRequest,
    RestoreRequest,
    ScoreLayersRequest,
    SelectLayersRequest,
)
from amnesia_bench.requests.data import (
    ImportRowsRequest,
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

Word = str | int | Path

# Cached because loading a config takes 50 ms, and many stages share one.
_data, _eval, _variant, _training = (
    cache(load_data),
    cache(load_eval),
    cache(load_variant),
    cache(load_training),
)


def command_line(request: StageRequest, out: Path) -> tuple[str, ...]:
    """Return the arguments of `amnesia` that are equivalent to a request.

    Args:
        request: the request; its locations are written to the command line as they are.
        out: the value of `--out`.
    """
    return (*map(str, _words(request)), "--out", str(out))


@singledispatch
def _words(request: StageRequest) -> Iterator[Word]:
    raise TypeError(type(request))


@_words.register
def _(request: DownloadRequest) -> Iterator[Word]:
    yield from ("download", request.repository)
    yield from _option("--revision", request.revision)


@_words.register
def _(request: InitializeRequest) -> Iterator[Word]:
    yield from ("init", "--model", request.model.name, "--tokenizer", request.tokenizer)
    yield from ("--seed", request.seed)


@_words.register
def _(request: ConvertRequest) -> Iterator[Word]:
    size = request.model.name.removeprefix("hypenet_")
    yield from ("convert", "--teacher", request.teacher, "--size", size)
    yield from ("--stage", request.stage)
    yield from _option("--student", request.student)
    yield from _option("--layers", request.layers)
    yield from ("--seed", request.seed)


@_words.register
def _(request: ScoreLayersRequest) -> Iterator[Word]:
    yield from ("score-layers", "--teacher", request.teacher, "--student", request.student)
    yield from ("--retrieval", ",".join(request.retrieval))
    yield from ("--commonsense", ",".join(request.commonsense))
    yield from _option("--samples", request.samples)
    yield from _labelled("--data", request.data)


@_words.register
def _(request: SelectLayersRequest) -> Iterator[Word]:
    yield from ("select-layers", request.scores, "--count", request.count, "--rule", request.rule)
    yield from ("--retrieval", ",".join(request.retrieval))
    yield from ("--commonsense", ",".join(request.commonsense))


@_words.register
def _(request: RestoreRequest) -> Iterator[Word]:
    yield from ("restore", "--pre", request.pre, "--post", request.post)
    packaged = _packaged(request.variant)
    yield from ("--variant", packaged)
    if (ranked := request.ranked_layers) is not None:
        yield from ("--layers", f"top{ranked.count}@{ranked.file}")
    if (heads := request.ranked_heads) is not None:
        yield from ("--heads", f"top{heads.count}@{heads.file}")
    yield from _option("--measured", request.measured)
    if request.allow_noop:
        yield "--allow-noop"
    yield from _changes({"restore": _variant(packaged)}, {"restore": request.variant})


@_words.register
def _(request: MeasureRequest) -> Iterator[Word]:
    yield from ("measure", "--pre", request.pre, "--post", request.post)
    packaged = _packaged(request.variant)
    yield from ("--variant", packaged)
    yield from _option("--data", request.data)
    yield from _changes({"restore": _variant(packaged)}, {"restore": request.variant})


@_words.register
def _(request: PrepareRequest) -> Iterator[Word]:
    yield from ("data", "prepare", request.config.name, "--tokenizer", request.tokenizer)
    for path in request.inputs:
        yield from ("--input", path)
    yield from _changes({"data": _data(request.config.name)}, {"data": request.config})


@_words.register
def _(request: ImportRowsRequest) -> Iterator[Word]:
    yield from ("data", "import", request.file)
    yield from _option("--sha256", request.sha256)


@_words.register
def _(request: SynthesizeRowsRequest) -> Iterator[Word]:
    source = request.source
    yield from ("data", "synthesize", source.generator, "--rows", source.rows)
    yield from _option("--words", source.words)
    yield from ("--seed", source.seed)


@_words.register
def _(request: SynthesizeTokenizerRequest) -> Iterator[Word]:
    yield from ("data", "synthesize", "tokenizer", "--seed", request.seed)


@_words.register
def _(request: TrainRequest) -> Iterator[Word]:
    run = request.run
    yield from ("train", "--config", run.train.name, "--init", request.init)
    for source, folder in request.data.items():
        yield from ("--data", f"{source}={folder}")
    yield from _option("--teacher", request.teacher)
    base = _training(run.train.name, ())
    if run.recipe.name != base.recipe.name:
        yield f"recipe={run.recipe.name}"
        base = _training(run.train.name, (f"recipe={run.recipe.name}",))
    yield from _changes(
        {"train": base.train, "recipe": base.recipe}, {"train": run.train, "recipe": run.recipe}
    )


@_words.register
def _(request: BuildPromptsRequest) -> Iterator[Word]:
    yield from ("niah", "build", "--tokenizer", request.tokenizer)
    if isinstance(request.haystack, HubEssays):
        revision = request.haystack.revision
        yield from ("--haystack", "hub" if revision is None else f"hub@{revision}")
    else:
        yield from _option("--haystack", request.haystack)
    yield from ("--tasks", ",".join(request.tasks), "--lengths", _list(request.lengths))
    yield from ("--samples", request.samples)
    if request.seed:
        yield from ("--seed", request.seed)


@_words.register
def _(request: EvaluateRequest) -> Iterator[Word]:
    yield from ("eval", "niah", "--checkpoint", request.checkpoint)
    yield from _option("--prompts", request.prompts)
    yield from _option("--tasks", None if request.tasks is None else ",".join(request.tasks))
    yield from _option("--lengths", None if request.lengths is None else _list(request.lengths))
    yield from _option("--max-new-tokens", request.max_new_tokens)
    yield from _engine(request.engine)
    yield from _division(request)


@_words.register
def _(request: RankLayersRequest) -> Iterator[Word]:
    yield from ("rank-layers", "--checkpoint", request.checkpoint)


@_words.register
def _(request: AnalyzeRequest) -> Iterator[Word]:
    analysis = request.analysis
    yield from ("analyze", analysis.kind)
    match analysis:
        case Autocorrelations():
            yield from _labelled("--data", analysis.data)
            yield from ("--max-distance", analysis.max_distance)
        case Gradients():
            yield from ("--checkpoint", f"{analysis.role}={analysis.checkpoint}")
            yield from _labelled("--data", analysis.data)
            yield from ("--tokens", analysis.tokens, "--samples", analysis.samples)
        case AttentionMaps():
            yield from _labelled("--checkpoint", analysis.checkpoints)
            yield from ("--prompts", analysis.prompts.folder)
            yield from ("--samples", analysis.prompts.samples, "--size", analysis.size)
        case Divergence():
            folders = {"pre": analysis.pre, "post": analysis.post}
            yield from _labelled("--checkpoint", folders)
            yield from _labelled("--data", analysis.data)
            yield from ("--tokens", analysis.tokens, "--samples", analysis.samples)
        case _:
            raise TypeError(analysis.kind)


@_words.register
def _(request: GenerateRequest) -> Iterator[Word]:
    yield from ("generate", "--checkpoint", request.checkpoint, "--task", request.task)
    yield from _option("--data", request.data)
    yield from _option("--limit", request.limit)
    yield from _engine(request.engine)
    yield from _division(request)
    yield from _changes({"eval": _eval(request.task)}, {"eval": request.config})


@_words.register
def _(request: ScoreRequest) -> Iterator[Word]:
    yield from ("score", request.answers)
    yield from _option("--workers", request.workers)


def _packaged(variant: Variant) -> str:
    """Return the name of a packaged variant; one from the user's own file is written as `qk`."""
    return variant.name if variant.name in options("restore") else "qk"


def _engine(engine: EngineChoice) -> Iterator[Word]:
    if engine.name != EngineChoice().name:
        yield from ("--engine", engine.name)
    yield from _option("--max-context-tokens", engine.max_context_tokens)
    yield from _option("--attn-logits-scaling", engine.attn_logits_scaling)


def _division(request: AnsweringRequest) -> Iterator[Word]:
    division = request.division
    if isinstance(division, AnswerPart):
        yield from ("--part", f"{division.index}/{division.count}")
    elif division is not None:
        for folder in division.folders:
            yield from ("--merge", folder)


def _option(name: str, value: Word | None) -> Iterator[Word]:
    if value is not None:
        yield from (name, value)


def _labelled(name: str, folders: Mapping[str, Path]) -> Iterator[Word]:
    for label, folder in folders.items():
        yield from (name, f"{label}={folder}")


def _list(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def _changes(base: Mapping[str, BaseModel], config: Mapping[str, BaseModel]) -> Iterator[str]:
    """Yield an override `path=value` for each value of `config` that differs from `base`."""
    for group, model in config.items():
        before = base[group].model_dump(mode="json", exclude={"name"})
        yield from _differing(group, before, model.model_dump(mode="json", exclude={"name"}))


def _differing(path: str, before: Any, now: Any) -> Iterator[str]:
    if before == now:
        return
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        for key, value in now.items():
            yield from _differing(f"{path}.{key}", before[key], value)
    else:
        yield f"{path}={_hydra(now)}"


def _hydra(value: Any) -> str:
    """Return a value as text in Hydra's override grammar."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_hydra(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_hydra, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)
