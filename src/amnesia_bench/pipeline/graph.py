"""Build the graph of an experiment: the stages that create and evaluate each row's checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from amnesia_bench.config.data_schema import SyntheticSource
from amnesia_bench.config.experiment_schema import (
    ExperimentConfig,
    Job,
    ModelPlan,
    Pretraining,
    Profile,
    RecallPlan,
    TrainingStep,
)
from amnesia_bench.config.load import load_variant
from amnesia_bench.costs.work import Training
from amnesia_bench.pipeline import stages
from amnesia_bench.pipeline.stage import Stage, closure
from amnesia_bench.reasoning.tasks import task_named
from amnesia_bench.requests.engines import EngineChoice


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
class Graph:
    """The graph of an experiment, which consists of the stages of its rows and their inputs."""

    job: Job
    rows: tuple[ExperimentRow, ...]

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
        for row in _rows(_Models(config.profile, config.profile.models[model], seed), job)
    ]
    return Graph(job=job, rows=tuple(rows))


def stages_of(graphs: Iterable[Graph]) -> tuple[Stage, ...]:
    """Return all stages of several graphs without duplicates, each after its inputs."""
    return closure(stage for graph in graphs for row in graph.rows for stage in row.measured)


def _rows(models: _Models, job: Job) -> Iterator[ExperimentRow]:
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


def _measured(checkpoint: Stage, models: _Models, config: ExperimentConfig) -> Iterator[Stage]:
    profile = config.profile
    for part in _parts(config):
        recall = stages.recall(checkpoint, models.prompts, part, models.recall_engine)
        yield replace(recall, gpus=min(1, profile.gpus))
    for name in config.scope.reasoning:
        plan, task = profile.reasoning[name], task_named(name)
        problems = None
        if plan.generated_problems is not None:
            problems = stages.rows(
                SyntheticSource(
                    generator="test_problems",
                    rows=plan.generated_problems,
                    words=None,
                    seed=models.seed,
                )
            )
        settings = stages.evaluation(task, plan.overrides)
        answers = stages.answers(checkpoint, task, settings, problems, models.engine)
        yield stages.scores(replace(answers, gpus=min(1, profile.gpus)), task)


def _parts(config: ExperimentConfig) -> Iterator[RecallPlan]:
    """Yield the tasks and lengths of each recall stage.

    Lengths are grouped in the same way for all experiments, so that they can share stages.
    """
    plan, scope = config.profile.recall, config.scope
    size = plan.lengths_per_stage
    for begin in range(0, len(plan.lengths), size):
        lengths = plan.lengths[begin : begin + size]
        if scope.lengths is None or set(lengths) & set(scope.lengths):
            changes = {"lengths": lengths, "tasks": scope.tasks or plan.tasks}
            yield plan.model_copy(update=changes)


class _Models:
    """The stages that create the checkpoints of one model and seed."""

    def __init__(self, profile: Profile, plan: ModelPlan, seed: int) -> None:
        self.profile = profile
        self.plan = plan
        self.seed = seed

    @property
    def engine(self) -> EngineChoice:
        """The engine for reasoning benchmarks."""
        return EngineChoice(attn_logits_scaling=self.plan.attn_logits_scaling)

    @property
    def recall_engine(self) -> EngineChoice:
        """The engine for recall, whose prompts may exceed the context limit in the config."""
        limit = self.plan.max_context_tokens
        return self.engine.model_copy(update={"max_context_tokens": limit})

    @cached_property
    def _tokenizer(self) -> Stage:
        """The stage whose artifact contains the tokenizer."""
        if self.profile.tokenizer_seed is not None:
            return stages.tokenizer(self.profile.tokenizer_seed)
        return self._base

    @cached_property
    def _base(self) -> Stage:
        plan = self.plan
        if not isinstance(plan.base, Pretraining):
            return stages.downloaded(plan.base, plan.shape)
        checkpoint = stages.initial(plan.shape, self._tokenizer, self.seed)
        for step in plan.base.steps:
            trained = self._trained(step, checkpoint, None)
            assert isinstance(trained.work, Training)
            checkpoint = replace(trained, work=replace(trained.work, of_base=True))
        return checkpoint

    @cached_property
    def _pre(self) -> Stage:
        steps = self.plan.distillation
        if steps is None:
            return self._base
        teacher = self._base
        student = stages.converted(steps.shape, teacher, None, self.seed)
        student = self._trained(steps.align, student, teacher)
        hybrid = stages.converted(steps.shape, teacher, student, self.seed)
        hybrid = self._trained(steps.distill, hybrid, teacher)
        return self._trained(steps.lengthen, hybrid, None)

    @cached_property
    def prompts(self) -> Stage:
        """The stage that builds the recall prompts, which all checkpoints share."""
        plan = self.profile.recall
        haystack = None
        if plan.haystack != "hub":
            haystack = stages.rows(
                SyntheticSource(
                    generator="haystack",
                    rows=plan.haystack.rows,
                    words=plan.haystack.words,
                    seed=self.seed,
                )
            )
        return stages.prompts(plan, self._tokenizer, haystack)

    def checkpoint(self, finetune: str, method: str, job: Job) -> Stage:
        """Return the stage that creates the checkpoint of a row."""
        if method == "pre":
            return self._pre
        if method == "qk_frozen":
            return self._trained(self.plan.frozen[finetune], self._pre, None)
        post = self._trained(self.plan.finetunes[finetune], self._pre, None)
        if method == "post":
            return post
        variant = job.config.restore if method == "restored" else load_variant(method)
        return stages.restored(self._pre, post, variant, self.plan.top_layers, self._ranking)

    @cached_property
    def _ranking(self) -> Stage | None:
        if self.plan.top_layers is None:
            return None
        return replace(stages.ranking(self._pre), gpus=min(1, self.profile.gpus))

    def _trained(self, step: TrainingStep, init: Stage, teacher: Stage | None) -> Stage:
        profile = self.profile
        run = stages.training_of(step, profile.training_overrides, self.seed)
        data = {
            source: stages.data(
                step.data.get(source, source), profile.data_overrides, self._tokenizer
            )
            for source in run.train.mixture
        }
        stage = stages.trained(step, run, init, data, teacher)
        return replace(stage, gpus=profile.gpus)
