"""Wall times of small graphs, by hand."""

from __future__ import annotations

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.wall_time import TimedStage, critical_path, wall_hours


def stage(name: str, hours: float, *inputs: str, gpus: int = 1) -> TimedStage:
    return TimedStage(id=name, inputs=inputs, gpus=gpus, hours=hours)


# A training of 8 GPUs, one that starts from it, and evaluations of both.
GRAPH = (
    stage("data", 0, gpus=0),
    stage("pre", 3, "data", gpus=8),
    stage("pre recall", 5, "pre"),
    stage("post", 1, "pre", gpus=8),
    stage("post recall", 5, "post"),
    stage("post answers", 2, "post"),
)


def test_the_critical_path_is_the_longest_chain() -> None:
    path = critical_path(GRAPH)
    assert [each.id for each in path] == ["data", "pre", "post", "post recall"]
    assert critical_path(()) == ()


def test_stages_wait_for_their_inputs_and_for_gpus() -> None:
    # post has more behind it than the recall of pre, so it is first to get 8 of 8 GPUs.
    assert wall_hours(GRAPH, 8) == 3 + 1 + 5
    assert wall_hours(GRAPH, 16) == 9
    pair = (stage("a", 2), stage("b", 2), stage("c", 3))
    assert [wall_hours(pair, gpus) for gpus in (1, 2, 3)] == [7, 4, 3]
    # Inputs that are not in the plan are done.
    assert wall_hours((stage("late", 2, "done before"),), 1) == 2
    assert wall_hours((), 4) == 0


def test_a_stage_with_more_gpus_than_there_are_is_named() -> None:
    with pytest.raises(UserError, match="pre takes 8 GPUs, and the plan is for 4"):
        wall_hours(GRAPH, 4)
