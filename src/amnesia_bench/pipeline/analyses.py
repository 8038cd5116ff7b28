"""One function per kind of stage that measures why recall is lost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from amnesia_bench.config.analysis_schema import AnalysisPlan
from amnesia_bench.costs.work import Probing, Writing
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.pipeline.stages import shape_of, unique_stages
from amnesia_bench.requests.analysis import (
    AnalyzeRequest,
    AttentionAnalysis,
    AttentionMaps,
    Autocorrelations,
    Divergence,
    Gradients,
    NeedlePrompts,
)


def autocorrelation(data: Mapping[str, Stage], plan: AnalysisPlan) -> Stage:
    """Return the stage that measures how soon the tokens of each source are repeated."""
    analysis = Autocorrelations(data=_locations(data), max_distance=plan.max_distance)
    names = "+".join(stage.name for stage in data.values())
    return Stage(
        kind="analysis",
        name=f"autocorrelation.{names}",
        request=AnalyzeRequest(analysis=analysis),
        inputs=unique_stages(*data.values()),
        work=Writing(bytes=1e6),
    )


def gradients(checkpoint: Stage, data: Mapping[str, Stage], plan: AnalysisPlan) -> Stage:
    """Return the stage that measures gradients by distance in a checkpoint before fine-tuning."""
    analysis = Gradients(
        checkpoint=checkpoint.location,
        role="pre",
        data=_locations(data),
        tokens=plan.tokens,
        samples=plan.texts,
    )
    work = Probing(
        shape=shape_of(checkpoint),
        texts=plan.texts * len(data),
        tokens=plan.tokens,
        gradients=True,
    )
    return _stage(f"gradients.{checkpoint.name}", analysis, (checkpoint, *data.values()), work)


def maps(checkpoints: Mapping[str, Stage], prompts: Stage, plan: AnalysisPlan) -> Stage:
    """Return the stage that measures attention distances and maps in checkpoints, by role."""
    analysis = AttentionMaps(
        checkpoints=_locations(checkpoints),
        prompts=NeedlePrompts(folder=prompts.location, samples=plan.prompts),
        size=plan.map_size,
    )
    post = checkpoints["restored"]
    work = Probing(
        shape=shape_of(post), texts=len(checkpoints) * (plan.prompts + 1), tokens=plan.length
    )
    return _stage(f"maps.{post.name}", analysis, (*checkpoints.values(), prompts), work)


def divergence(pre: Stage, post: Stage, data: tuple[str, Stage], plan: AnalysisPlan) -> Stage:
    """Return the stage that measures how far a fine-tune moved, on its own data."""
    source, stage = data
    analysis = Divergence(
        pre=pre.location,
        post=post.location,
        data={source: stage.location},
        tokens=plan.tokens,
        samples=plan.texts,
    )
    work = Probing(shape=shape_of(post), texts=2 * plan.texts, tokens=plan.tokens)
    return _stage(f"divergence.{post.name}", analysis, (pre, post, stage), work)


def _stage(
    name: str, analysis: AttentionAnalysis, inputs: tuple[Stage, ...], work: Probing
) -> Stage:
    return Stage(
        kind="analysis",
        name=name,
        request=AnalyzeRequest(analysis=analysis),
        inputs=unique_stages(*inputs),
        work=work,
    )


def _locations(stages: Mapping[str, Stage]) -> dict[str, Path]:
    return {name: stage.location for name, stage in stages.items()}
