"""Estimate the cost of experiments, by model and by step of the paper's pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from amnesia_bench.costs.gpus import Gpu
from amnesia_bench.costs.stage_cost import Cost, CostTerm, cost_of, terms_of, total
from amnesia_bench.costs.work import Training, at_most
from amnesia_bench.pipeline.adopted import needed_stages
from amnesia_bench.pipeline.attempts import measured_gpu_hours
from amnesia_bench.pipeline.bookkeeping import StageState, state_of
from amnesia_bench.pipeline.corrections import (
    AnswerLengths,
    Correction,
    correction_of,
    finished_lengths,
)
from amnesia_bench.pipeline.graph import Graph, stages_of
from amnesia_bench.pipeline.stage import Stage, closure, unsettled
from amnesia_bench.pipeline.wall_time import TimedStage, critical_path, wall_hours

SHARED = "shared"


class Step(StrEnum):
    """A step of the paper's pipeline.

    `FILES` comprises stages that write data, prompts, or checkpoints without training.
    """

    PRETRAINING = "pretraining"
    STAGE_1 = "stage 1"
    SELECTION = "layer selection"
    STAGE_2 = "stage 2"
    STAGE_3 = "stage 3"
    SFT = "SFT"
    RANKING = "ranking"
    RECALL = "recall"
    REASONING = "reasoning"
    ANALYSIS = "analysis"
    FILES = "files"


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A stage with its state and cost.

    Attributes:
        stage, state, step: the stage, its state, and the step to which it belongs.
        model: the label of the model that needs the stage; SHARED if several models need it.
        cost: the expected cost.
        bound: the cost if every answer has the maximum length.
        terms: the terms of the expected GPU-hours, before they are multiplied by `factor`.
        factor: the correction of the GPU-hours by finished stages; 1 without one.
    """

    stage: Stage
    state: StageState
    step: Step
    model: str
    cost: Cost
    bound: Cost
    terms: tuple[CostTerm, ...]
    factor: float = 1.0

    @property
    def timed(self) -> TimedStage:
        """The stage with its expected wall time; stages on the CPU take no time."""
        return TimedStage(
            id=self.stage.id,
            inputs=tuple(read.id for read in self.stage.inputs),
            gpus=self.stage.gpus,
            hours=self.cost.gpu_hours / max(1, self.stage.gpus),
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All stages of one or more experiments, each after its inputs.

    `corrections` are those of the steps that have finished stages, and `measured_lengths` is the
    number of finished stages whose answers give the expected lengths of others. `wall_hours` are
    the expected hours of the pending stages on the requested number of GPUs; None without one.
    """

    stages: tuple[PlannedStage, ...]
    corrections: Mapping[Step, Correction] = field(default_factory=dict)
    measured_lengths: int = 0
    wall_hours: float | None = None

    @property
    def pending(self) -> tuple[PlannedStage, ...]:
        """The stages that are not done."""
        return tuple(planned for planned in self.stages if planned.state is not StageState.CACHED)

    @property
    def critical_path(self) -> tuple[TimedStage, ...]:
        """The chain of pending stages that takes longest, however many GPUs there are."""
        return critical_path([planned.timed for planned in self.pending])

    @property
    def following(self) -> tuple[PlannedStage, ...]:
        """The finished stages that become stale if pending stages change their inputs."""
        cached = {planned.stage.id for planned in self.stages if planned.state is StageState.CACHED}
        stages = [planned.stage for planned in self.stages]
        dependent = {stage.id for stage in unsettled(stages, cached)} & cached
        return tuple(planned for planned in self.stages if planned.stage.id in dependent)

    @property
    def states(self) -> dict[StageState, int]:
        """The number of stages in each state, for states with at least one stage."""
        states = [planned.state for planned in self.stages]
        counts = {state: states.count(state) for state in StageState}
        return {state: count for state, count in counts.items() if count}


def plan_graphs(
    graphs: Sequence[Graph], store: Path, gpu: Gpu, total_gpus: int | None = None
) -> Plan:
    """Return the stages of experiments with their states, and their costs on GPUs of one model.

    Args:
        graphs: the graphs of the experiments.
        store: the folder of all artifacts.
        gpu: the model of the GPUs.
        total_gpus: the number of GPUs for which the wall time is estimated; None omits it.

    Raises:
        UserError: a training run cannot be distributed over its GPUs, or a stage needs more than
            `total_gpus` GPUs.
    """
    models = _models(graphs)
    stages = needed_stages(store, stages_of(graphs))
    states = {stage.id: state_of(store, stage.kind, stage.id) for stage in stages}
    finished = [stage for stage in stages if states[stage.id] is StageState.CACHED]
    lengths = finished_lengths(store, finished)
    planned = [
        _planned(stage, states[stage.id], models[stage.id], lengths, gpu) for stage in stages
    ]
    corrections = _corrections(planned, store, gpu)
    plan = Plan(
        stages=tuple(_corrected(each, corrections) for each in planned),
        corrections=corrections,
        measured_lengths=lengths.scored,
    )
    if total_gpus is None:
        return plan
    hours = wall_hours([planned.timed for planned in plan.pending], total_gpus)
    return replace(plan, wall_hours=hours)


def _planned(
    stage: Stage, state: StageState, model: str, lengths: AnswerLengths, gpu: Gpu
) -> PlannedStage:
    work = lengths.applied_to(stage)
    return PlannedStage(
        stage=stage,
        state=state,
        step=step_of(stage),
        model=model,
        cost=cost_of(work, stage.gpus, gpu),
        bound=cost_of(at_most(work), stage.gpus, gpu),
        terms=terms_of(work, stage.gpus, gpu),
    )


def _corrections(
    planned: Iterable[PlannedStage], store: Path, gpu: Gpu
) -> Mapping[Step, Correction]:
    """Return the correction of each step that has finished stages with a known run time."""
    ratios: dict[Step, list[float]] = {}
    for each in planned:
        if each.state is StageState.CACHED and each.cost.gpu_hours:
            measured = measured_gpu_hours(store, each.stage.id, gpu.name)
            if measured is not None:
                ratios.setdefault(each.step, []).append(measured / each.cost.gpu_hours)
    return {step: correction_of(ratios[step]) for step in Step if step in ratios}


def _corrected(planned: PlannedStage, corrections: Mapping[Step, Correction]) -> PlannedStage:
    if planned.step not in corrections:
        return planned
    factor = corrections[planned.step].factor
    return replace(
        planned,
        factor=factor,
        cost=replace(planned.cost, gpu_hours=factor * planned.cost.gpu_hours),
        bound=replace(planned.bound, gpu_hours=factor * planned.bound.gpu_hours),
    )


def by_model(stages: Iterable[PlannedStage]) -> dict[str, dict[Step, Cost]]:
    """Return the cost of each model by step; the cost of shared stages comes last, under SHARED."""
    groups: dict[str, dict[Step, list[Cost]]] = {}
    for planned in stages:
        groups.setdefault(planned.model, {}).setdefault(planned.step, []).append(planned.cost)
    return {
        model: {step: total(groups[model][step]) for step in Step if step in groups[model]}
        for model in sorted(groups, key=lambda model: model == SHARED)
    }


def step_of(stage: Stage) -> Step:
    """Return the step of the paper's pipeline to which a stage belongs."""
    if isinstance(stage.work, Training):
        return _training_step(stage, stage.work)
    kinds = {
        "layer_scores": Step.SELECTION,
        "ranking": Step.RANKING,
        "recall": Step.RECALL,
        "answers": Step.REASONING,
        "scores": Step.REASONING,
        "analysis": Step.ANALYSIS,
    }
    return kinds.get(stage.kind, Step.FILES)


def _training_step(stage: Stage, work: Training) -> Step:
    if work.of_base:
        return Step.PRETRAINING
    objective = work.run.train.objective
    if objective != "next_token":
        return Step.STAGE_1 if objective == "align" else Step.STAGE_2
    init = [read.work for read in stage.inputs[:1]]  # none if the checkpoint was adopted
    distilled = any(isinstance(w, Training) and w.run.train.objective == "distill" for w in init)
    return Step.STAGE_3 if distilled else Step.SFT


def _models(graphs: Sequence[Graph]) -> dict[str, str]:
    """Return the label of the model that needs each stage (see `PlannedStage`), by stage id."""
    needed: dict[str, list[Stage]] = {}
    for graph in graphs:
        for row in graph.rows:
            needed.setdefault(row.model, []).extend(row.measured)
        for analysis in graph.analyses:
            needed.setdefault(analysis.model, []).append(analysis.stage)
    models: dict[str, str] = {}
    for model, measured in needed.items():
        for stage in closure(measured):
            models[stage.id] = SHARED if stage.id in models else model
    return models
