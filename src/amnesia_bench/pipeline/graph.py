"""Build the graph of an experiment: the stages that create and evaluate each row's checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from amnesia_bench.config.analysis_schema import AnalysisKind, AnalysisPlan
from amnesia_bench.config.data_schema import SyntheticSource
from amnesia_bench.config.experiment_schema import (
    ExperimentConfig,
    Job,
    RecallPlan,
)
from amnesia_bench.costs.gpus import GPUS
from amnesia_bench.costs.work import Probing
from amnesia_bench.pipeline import analyses, evaluations, stages
from amnesia_bench.pipeline.model_stages import ModelStages
from amnesia_bench.pipeline.parts import divided, part_count
from amnesia_bench.pipeline.stage import Stage, closure
from amnesia_bench.reasoning.tasks import task_named

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class ExperimentRow:
    """A table row for one training seed: its checkpoint, and the stages that evaluate it."""

    model: str
    finetune: str
    method: str
    seed: int
    checkpoint: Stage
    measured: tuple[Stage, ...]


@dataclass(frozen=True, kw_only=True)
class ExperimentAnalysis:
    """A stage that measures why recall is lost, in one model and training seed.

    `finetune` is None if the stage measures only the checkpoint before fine-tuning, or only data.
    """

    model: str
    finetune: str | None
    seed: int
    stage: Stage


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The graph of an experiment: the stages of its rows, its analyses, and all their inputs."""

    job: Job
    rows: tuple[ExperimentRow, ...]
    analyses: tuple[ExperimentAnalysis, ...] = ()

    @property
    def reports(self) -> tuple[str, ...]:
        """The names of the experiment's report configs in configs/report."""
        return self.job.config.scope.reports


def build(job: Job) -> Graph:
    """Return the graph of one experiment."""
    config = job.config
    rows = [
        row
        for model in config.scope.models
        for seed in config.profile.seeds
        for row in _rows(ModelStages(config.profile, config.profile.models[model], seed), job)
    ]
    return Graph(job=job, rows=tuple(rows), analyses=tuple(_analyses(job)))


def stages_of(graphs: Iterable[Graph]) -> tuple[Stage, ...]:
    """Return all stages of several graphs without duplicates, each after its inputs."""
    return closure(
        stage
        for graph in graphs
        for stage in (
            *(stage for row in graph.rows for stage in row.measured),
            *(analysis.stage for analysis in graph.analyses),
        )
    )


def _rows(models: ModelStages, job: Job) -> Iterator[ExperimentRow]:
    config = job.config
    for finetune in config.scope.finetunes:
        for method in config.experiment.methods:
            checkpoint = models.checkpoint(finetune, method, job)
            yield ExperimentRow(
                model=models.plan.label,
                finetune=finetune,
                method=method,
                seed=models.seed,
                checkpoint=checkpoint,
                measured=tuple(_measured(checkpoint, models, config)),
            )


def _analyses(job: Job) -> Iterator[ExperimentAnalysis]:
    config = job.config
    profile, plan = config.profile, config.profile.analysis
    for kind, names in config.scope.analyses.items():
        assert plan is not None  # checked when the config is loaded
        for name in names:
            # Data are the same for all training seeds.
            for seed in profile.seeds[: 1 if kind == "autocorrelation" else None]:
                models = ModelStages(profile, profile.models[name], seed)
                for finetune, stage in _analyses_of(kind, models, job, plan):
                    gpus = min(1, profile.gpus) if isinstance(stage.work, Probing) else 0
                    yield ExperimentAnalysis(
                        model=models.plan.label,
                        finetune=finetune,
                        seed=seed,
                        stage=replace(stage, gpus=gpus),
                    )


def _analyses_of(
    kind: AnalysisKind, models: ModelStages, job: Job, plan: AnalysisPlan
) -> Iterator[tuple[str | None, Stage]]:
    """Yield the stages of one kind of analysis, with their fine-tunes."""
    if kind == "autocorrelation":
        yield None, analyses.autocorrelation(models.analysis_data(plan.repeated), plan)
        return
    if kind == "gradients":
        pre = models.checkpoint("", "pre", job)
        yield None, analyses.gradients(pre, models.analysis_data(tuple(plan.data)), plan)
        return
    for finetune in job.config.scope.finetunes:
        if finetune not in models.plan.finetunes:
            continue
        checkpoints = {
            role: models.checkpoint(finetune, role, job) for role in ("pre", "post", "restored")
        }
        if kind == "maps":
            yield finetune, analyses.maps(checkpoints, models.analysis_prompts(plan), plan)
        else:
            data = models.finetune_data(finetune)
            pre, post = checkpoints["pre"], checkpoints["post"]
            yield finetune, analyses.divergence(pre, post, data, plan)


def _measured(checkpoint: Stage, models: ModelStages, config: ExperimentConfig) -> Iterator[Stage]:
    profile = config.profile
    for plan_part in _parts(config):
        recall = evaluations.recall(checkpoint, models.prompts, plan_part, models.recall_engine)
        yield _divided(recall, config)
    for name in config.scope.reasoning:
        plan, task = profile.reasoning[name], task_named(name)
        problems = models.file(name)
        if problems is None and plan.generated_problems is not None:
            problems = stages.rows(
                SyntheticSource(
                    generator="test_problems",
                    rows=plan.generated_problems,
                    words=None,
                    seed=models.seed,
                )
            )
        settings = evaluations.evaluation(task, plan.overrides)
        answers = evaluations.answers(
            checkpoint, task, settings, problems, models.engine, plan.limit
        )
        yield evaluations.scores(_divided(answers, config), task)


def _divided(evaluation: Stage, config: ExperimentConfig) -> Stage:
    """Return an evaluation stage with the profile's GPUs, divided into parts if it takes long."""
    profile, cluster = config.profile, config.cluster
    stage = replace(evaluation, gpus=min(profile.gpus, profile.gpus_per_evaluation))
    count = part_count(stage, GPUS[cluster.gpu], profile.max_hours_per_evaluation)
    return divided(stage, count)


def _parts(config: ExperimentConfig) -> Iterator[RecallPlan]:
    """Yield the tasks and lengths of each recall stage.

    Lengths are grouped in the same way for all experiments, so that they can share stages.
    """
    plan, scope = config.profile.recall, config.scope
    tasks = scope.tasks or plan.tasks
    for lengths in _groups(plan.lengths, plan.lengths_per_stage):
        if scope.lengths is None or set(lengths) & set(scope.lengths):
            for group in _groups(tasks, plan.tasks_per_stage or len(tasks)):
                yield plan.model_copy(update={"lengths": lengths, "tasks": group})


def _groups(items: tuple[Item, ...], size: int) -> Iterator[tuple[Item, ...]]:
    return (items[begin : begin + size] for begin in range(0, len(items), size))
