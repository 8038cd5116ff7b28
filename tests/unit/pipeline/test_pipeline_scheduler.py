"""Stages start after their inputs, within cores and GPUs; one that fails is tried once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from amnesia_bench.pipeline import scheduler
from amnesia_bench.pipeline.scheduler import SchedulerResult, WorkerExit, schedule

DONE = WorkerExit(did_stage=True, failure=None)
DONE_ELSEWHERE = WorkerExit(did_stage=False, failure=None)


def failed(message: str) -> WorkerExit:
    return WorkerExit(did_stage=False, failure=message)


@dataclass(frozen=True, eq=False)
class FakeStage:
    id: str
    inputs: tuple[FakeStage, ...] = ()
    gpus: int = 0


@dataclass
class FakeWorkers:
    """Workers that end one at a time; `choose` says which of those that run ends next."""

    exits: Mapping[str, Sequence[WorkerExit]] = field(default_factory=dict)
    choose: Callable[[list[str]], str] = lambda running: running[0]
    started: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    # Those that ran while the scheduler waited, each time that it did.
    together: list[list[str]] = field(default_factory=list)
    running: dict[str, Future[WorkerExit]] = field(default_factory=dict)

    def start(self, stage_id: str) -> Future[WorkerExit]:
        self.started.append(stage_id)
        self.running[stage_id] = Future()
        return self.running[stage_id]

    def wait(self, futures: Mapping[Future[WorkerExit], str], **_: str) -> Any:
        assert set(futures.values()) == set(self.running)
        self.together.append(list(self.running))
        stage_id = self.choose(list(self.running))
        exits = iter(self.exits.get(stage_id, ()))
        future = self.running.pop(stage_id)
        future.set_result(next(islice(exits, self.ended.count(stage_id), None), DONE))
        self.ended.append(stage_id)
        return SimpleNamespace(done={future})


@contextmanager
def ending(workers: FakeWorkers) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "wait", workers.wait)
        yield


def run(
    workers: FakeWorkers,
    stages: Sequence[FakeStage],
    *,
    cores: int = 1,
    gpus: int = 0,
    threads: Mapping[str, int] | None = None,
) -> SchedulerResult:
    with ending(workers):
        counts = {stage.id: 1 for stage in stages} | dict(threads or {})
        return schedule(stages, counts, cores, gpus, workers.start)


FIRST = FakeStage("first")
LEFT, RIGHT = FakeStage("left", (FIRST,)), FakeStage("right", (FIRST,))
LAST = FakeStage("last", (LEFT, RIGHT))
DIAMOND = (FIRST, LEFT, RIGHT, LAST)


def test_a_stage_starts_as_soon_as_its_inputs_are_done() -> None:
    workers = FakeWorkers()
    assert run(workers, DIAMOND, cores=8) == SchedulerResult(
        done=frozenset(["first", "left", "right", "last"]), failed=None
    )
    assert workers.together == [["first"], ["left", "right"], ["right"], ["last"]]


def test_an_input_that_is_not_to_be_run_is_not_waited_for() -> None:
    workers = FakeWorkers()
    run(workers, (LEFT, LAST))
    assert workers.started == ["left", "last"]


def test_the_longest_chain_comes_first_and_then_the_order_of_the_graph() -> None:
    short, other = FakeStage("short"), FakeStage("other")
    workers = FakeWorkers()
    run(workers, (short, other, *DIAMOND))
    assert workers.started == ["first", "left", "right", "short", "other", "last"]


def test_what_does_not_fit_is_passed_by_what_does() -> None:
    one, large, small = FakeStage("one"), FakeStage("large"), FakeStage("small")
    workers = FakeWorkers()
    run(workers, (one, large, small), cores=4, threads={"one": 2, "large": 3, "small": 2})
    assert workers.together == [["one", "small"], ["small"], ["large"]]


def test_gpus_are_counted_apart_from_cores() -> None:
    stages = (*(FakeStage(f"gpu{n}", gpus=2) for n in range(3)), FakeStage("cpu"))
    workers = FakeWorkers()
    run(workers, stages, cores=8, gpus=4)
    assert workers.together[0] == ["gpu0", "gpu1", "cpu"]
    assert workers.started == ["gpu0", "gpu1", "cpu", "gpu2"]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[FakeStage], dict[str, int], int, int]:
    cores, gpus = draw(st.integers(1, 6)), draw(st.integers(0, 4))
    stages: list[FakeStage] = []
    threads = {}
    for number in range(draw(st.integers(1, 12))):
        inputs = draw(st.sets(st.sampled_from(stages))) if stages else set()
        stages.append(FakeStage(f"s{number}", tuple(inputs), draw(st.integers(0, gpus))))
        threads[f"s{number}"] = draw(st.integers(1, cores))
    return stages, threads, cores, gpus


# Drawing is slow on a machine that others use.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(graphs(), st.data())
def test_no_graph_takes_more_than_there_is_or_leaves_idle_what_a_stage_could_use(
    drawn: tuple[list[FakeStage], dict[str, int], int, int], data: st.DataObject
) -> None:
    stages, threads, cores, gpus = drawn
    by_id = {stage.id: stage for stage in stages}
    workers = FakeWorkers(choose=lambda running: data.draw(st.sampled_from(running)))
    result = run(workers, stages, cores=cores, gpus=gpus, threads=threads)
    assert result == SchedulerResult(done=frozenset(by_id), failed=None)
    assert sorted(workers.started) == sorted(by_id)  # each once
    for moment, running in enumerate(workers.together):
        free_cores = cores - sum(threads[each] for each in running)
        free_gpus = gpus - sum(by_id[each].gpus for each in running)
        assert free_cores >= 0
        assert free_gpus >= 0
        before = workers.ended[:moment]
        for stage in stages:
            has_inputs = all(each.id in before for each in stage.inputs)
            if stage.id in running:
                assert has_inputs
            elif stage.id not in before and has_inputs:
                assert threads[stage.id] > free_cores or stage.gpus > free_gpus


def test_a_stage_that_fails_once_is_done_at_the_second_attempt() -> None:
    workers = FakeWorkers(exits={"left": [failed("no luck")]})
    result = run(workers, DIAMOND)
    assert result == SchedulerResult(done=frozenset(each.id for each in DIAMOND), failed=None)
    assert workers.started == ["first", "left", "left", "right", "last"]


def test_what_does_not_depend_on_a_stage_that_failed_still_runs() -> None:
    workers = FakeWorkers(exits={"left": [failed("no luck"), failed("none again")]})
    other = FakeStage("other", (RIGHT,))
    result = run(workers, (*DIAMOND, other))
    assert result == SchedulerResult(
        done=frozenset(["first", "right", "other"]), failed="none again"
    )
    assert workers.started.count("left") == 2
    assert "last" not in workers.started


def test_a_stage_that_another_process_did_counts_as_an_input_and_not_as_done() -> None:
    workers = FakeWorkers(exits={"first": [DONE_ELSEWHERE]})
    result = run(workers, (FIRST, LEFT))
    assert result == SchedulerResult(done=frozenset(["left"]), failed=None)
