"""Estimate the wall time of stages from their hours, without running them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from heapq import heappop, heappush

from amnesia_bench.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TimedStage:
    """A stage that takes `hours` on `gpus` GPUs, after the stages with the ids `inputs`."""

    id: str
    inputs: tuple[str, ...]
    gpus: int
    hours: float


def critical_path(stages: Sequence[TimedStage]) -> tuple[TimedStage, ...]:
    """Return the chain of stages that takes longest; no number of GPUs makes a run shorter.

    `stages` must be sorted so that each stage comes after its inputs.
    """
    by_id = {stage.id: stage for stage in stages}
    ends: dict[str, float] = {}
    before: dict[str, str] = {}
    for stage in stages:
        inputs = [read for read in stage.inputs if read in ends]
        latest = max(inputs, key=lambda read: ends[read], default=None)
        ends[stage.id] = stage.hours
        if latest is not None:
            ends[stage.id] += ends[latest]
            before[stage.id] = latest
    path: list[TimedStage] = []
    last = max(ends, key=lambda id: ends[id], default=None)
    while last is not None:
        path.append(by_id[last])
        last = before.get(last)
    return tuple(reversed(path))


def wall_hours(stages: Sequence[TimedStage], gpus: int) -> float:
    """Return the hours until all stages are finished on `gpus` GPUs.

    Whenever GPUs are free, the ready stage with the longest remaining path that fits starts. Stages
    on the CPU start at once. `stages` must be sorted so that each stage comes after its inputs.

    Raises:
        UserError: a stage needs more GPUs.
    """
    for stage in stages:
        if stage.gpus > gpus:
            raise UserError(
                f"{stage.id} takes {stage.gpus} GPUs, and the plan is for {gpus}",
                hint=f"Use --gpus {stage.gpus} or more, or profile.gpus={gpus}.",
            )
    by_id = {stage.id: stage for stage in stages}
    remaining = _remaining_hours(stages)
    order = TopologicalSorter({id: [r for r in s.inputs if r in by_id] for id, s in by_id.items()})
    order.prepare()
    ready: list[str] = []
    running: list[tuple[float, str]] = []
    free, time = gpus, 0.0
    while order.is_active():
        ready = sorted({*ready, *order.get_ready()}, key=lambda id: (-remaining[id], id))
        for id in tuple(ready):
            if by_id[id].gpus <= free:
                ready.remove(id)
                free -= by_id[id].gpus
                heappush(running, (time + by_id[id].hours, id))
        time, id = heappop(running)
        free += by_id[id].gpus
        order.done(id)
    return time


def _remaining_hours(stages: Sequence[TimedStage]) -> Mapping[str, float]:
    """For each stage, return the hours of the longest chain that begins with it."""
    own = {stage.id: stage.hours for stage in stages}
    hours = dict(own)
    for stage in reversed(stages):
        for read in stage.inputs:
            if read in hours:
                hours[read] = max(hours[read], own[read] + hours[stage.id])
    return hours
