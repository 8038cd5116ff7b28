"""Run stages on one machine: each as soon as its inputs are done and there are cores for it.

Each stage is run by a worker (`worker`), which is a process and not a thread: a signal can end a
process wherever it waits, and then its lease and its command end with it. All workers hold the
reading end of one pipe, and this process holds the writing end. When that is closed, because this
process is done, was interrupted or was killed, they end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from amnesia_bench.pipeline.stage import Stage

_WORKER = "amnesia_bench.pipeline.worker"
_ATTEMPTS = 2
_MESSAGE_LINES = 8


@dataclass(frozen=True, kw_only=True)
class WorkerExit:
    """How a worker ended.

    Attributes:
        did_stage: whether it did the stage; False where another process had done it.
        failure: the end of its stderr if it failed, else None.
    """

    did_stage: bool
    failure: str | None


@dataclass(frozen=True, kw_only=True)
class SchedulerResult:
    """The ids of the stages that workers of this run did, and how the last failed one failed."""

    done: frozenset[str]
    failed: str | None


def run_stages(
    store: Path,
    stages: Sequence[Stage],
    threads: Mapping[str, int],
    cores: int,
    gpus: int,
    server: str | None,
) -> SchedulerResult:
    """Run stages, each after its inputs; see `schedule`.

    Args:
        store: the folder of all artifacts, which holds the orders of the stages.
        stages: those to run. Their workers skip what is done and not stale.
        threads: the number of cores of each stage, by id; none takes more than there are.
        cores: the number of cores that may be in use at once.
        gpus: the number of GPUs that may be in use at once; no stage takes more.
        server: the socket of a fork server; None starts a process for each stage.
    """
    given = () if server is None else ("--server", server)
    reading, writing = os.pipe()
    with ExitStack() as stack:
        stack.callback(os.close, reading)
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=cores))
        # Before the pool waits for its threads, and these for their workers.
        stack.callback(os.close, writing)

        def start(stage_id: str) -> Future[WorkerExit]:
            return pool.submit(_run_worker, (str(store), stage_id, *given), reading)

        return schedule(stages, threads, cores, gpus, start)


def schedule(
    stages: Sequence[Stage],
    threads: Mapping[str, int],
    cores: int,
    gpus: int,
    start: Callable[[str], Future[WorkerExit]],
) -> SchedulerResult:
    """Start each stage when its inputs are done and enough cores and GPUs are free.

    Of those that could start, the one with the longest chain of stages after it comes first. A
    stage that fails is tried once more. Stages that do not depend on a failed one still run.
    """
    by_id = {stage.id: stage for stage in stages}
    order = TopologicalSorter({id: _inputs_within(by_id, id) for id in by_id})
    order.prepare()
    chains = _chain_lengths(stages)
    rank = {stage.id: (-chains[stage.id], number) for number, stage in enumerate(stages)}
    ready: list[str] = []
    running: dict[Future[WorkerExit], str] = {}
    attempts = dict.fromkeys(by_id, 0)
    done: set[str] = set()
    failed: str | None = None
    while True:
        ready = sorted({*ready, *order.get_ready()}, key=rank.__getitem__)
        for id in tuple(ready):
            free_cores = cores - sum(threads[each] for each in running.values())
            free_gpus = gpus - sum(by_id[each].gpus for each in running.values())
            if threads[id] <= free_cores and by_id[id].gpus <= free_gpus:
                ready.remove(id)
                attempts[id] += 1
                running[start(id)] = id
        if not running:
            return SchedulerResult(done=frozenset(done), failed=failed)
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            id, end = running.pop(future), future.result()
            if end.failure is None:
                order.done(id)
                done.update([id] if end.did_stage else [])
            elif attempts[id] < _ATTEMPTS:
                ready.append(id)
            else:
                failed = end.failure


def _inputs_within(stages: Mapping[str, Stage], stage_id: str) -> list[str]:
    return [each.id for each in stages[stage_id].inputs if each.id in stages]


def _chain_lengths(stages: Sequence[Stage]) -> dict[str, int]:
    """Return the length of the longest chain of stages that begins with each."""
    lengths = {stage.id: 1 for stage in stages}
    for stage in reversed(stages):
        for each in stage.inputs:
            if each.id in lengths:
                lengths[each.id] = max(lengths[each.id], lengths[stage.id] + 1)
    return lengths


def _run_worker(arguments: Sequence[str], pipe: int) -> WorkerExit:
    # Files and not pipes, which a command that outlives its worker would keep open.
    with TemporaryFile() as printed, TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", _WORKER, *arguments, "--driver", str(pipe)],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=errors,
            pass_fds=[pipe],
            # Ctrl-C in a terminal reaches the driver alone, which then ends its workers.
            process_group=0,
        )
        code = process.wait()
        did_stage, lines = bool(_lines_of(printed)), _lines_of(errors)
    if code == 0:
        return WorkerExit(did_stage=did_stage, failure=None)
    if code < 0:  # it was killed, and could not end its command
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
    message = "\n".join(lines[-_MESSAGE_LINES:])
    return WorkerExit(did_stage=False, failure=message or f"The worker of {arguments[1]} {how}.")


def _lines_of(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return file.read().decode(errors="replace").rstrip().splitlines()
