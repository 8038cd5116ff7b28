"""Estimate the cost of experiments, by model and by step of the paper's pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from amnesia_bench.costs.gpus import Gpu
from amnesia_bench.costs.stage_cost import Cost, cost_of, total
from amnesia_bench.costs.work import Training
from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.bookkeeping import StageState, state_of
from amnesia_bench.pipeline.graph import Graph, stages_of
from amnesia_bench.pipeline.stage import Stage, closure, unsettled
from amnesia_bench.store.files import nearest_existing

SHARED = "shared"


class Step(StrEnum):
    """A step of the paper's pipeline.

    `FILES` comprises stages that write data, prompts, or checkpoints without training.
    """

    PRETRAINING = "pretraining"
    STAGE_1 = "stage 1"
    STAGE_2 = "stage 2"
    STAGE_3 = "stage 3"
    SFT = "SFT"
    RANKING = "ranking"
    RECALL = "recall"
    REASONING = "reasoning"
    FILES = "files"


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A stage with its state and cost.

    `model` is the label of the model that needs the stage; SHARED if several models need it.
    """

    stage: Stage
    state: StageState
    step: Step
    model: str
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All stages of one or more experiments, each after its inputs."""

    stages: tuple[PlannedStage, ...]

    @property
    def pending(self) -> tuple[PlannedStage, ...]:
        """The stages that are not done."""
        return tuple(planned for planned in self.stages if planned.state is not StageState.CACHED)

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


def plan_graphs(graphs: Sequence[Graph], store: Path, gpu: Gpu) -> Plan:
    """Return the stages of experiments with their states, and their costs on GPUs of one model.

    Raises:
        UserError: the path of the store is a file, or a training run cannot be distributed over
            its GPUs.
    """
    _check_store(store)
    models = _models(graphs)
    return Plan(
        stages=tuple(
            PlannedStage(
                stage=stage,
                state=state_of(store, stage.kind, stage.id),
                step=step_of(stage),
                model=models[stage.id],
                cost=cost_of(stage.work, stage.gpus, gpu),
            )
            for stage in stages_of(graphs)
        )
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
        "ranking": Step.RANKING,
        "recall": Step.RECALL,
        "answers": Step.REASONING,
        "scores": Step.REASONING,
    }
    return kinds.get(stage.kind, Step.FILES)


def _training_step(stage: Stage, work: Training) -> Step:
    if work.of_base:
        return Step.PRETRAINING
    objective = work.run.train.objective
    if objective != "next_token":
        return Step.STAGE_1 if objective == "align" else Step.STAGE_2
    init = stage.inputs[0]
    distilled = isinstance(init.work, Training) and init.work.run.train.objective == "distill"
    return Step.STAGE_3 if distilled else Step.SFT


def _models(graphs: Sequence[Graph]) -> dict[str, str]:
    """Return the label of the model that needs each stage (see `PlannedStage`), by stage id."""
    rows = [row for graph in graphs for row in graph.rows]
    models: dict[str, str] = {}
    for model in dict.fromkeys(row.model for row in rows):
        measured = (stage for row in rows if row.model == model for stage in row.measured)
        for stage in closure(measured):
            models[stage.id] = SHARED if stage.id in models else model
    return models


def _check_store(store: Path) -> None:
    existing = nearest_existing(store)
    if not existing.is_dir():
        raise UserError(
            f"{existing}: is a file, but the store must be a folder",
            hint="Choose another folder with --store or $AMNESIA_STORE.",
        )
