"""Run stages on one machine, each when its inputs are done and enough cores and GPUs are free.

Each stage is run by a worker (see `worker`). Workers are processes and not threads, because
a signal can end a process while it waits, and then its lease and its command end as well. All
workers inherit the read end of a pipe whose write end is open only in this process. When this
process finishes, is interrupted or is killed, the write end is closed, and the workers end.
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
    """The result of a worker.

    Attributes:
        did_stage: whether the worker ran the stage; False if another process ran it.
        failure: the last lines of the worker's stderr if it failed, else None.
    """

    did_stage: bool
    failure: str | None


@dataclass(frozen=True, kw_only=True)
class SchedulerResult:
    """The result of `run_stages`.

    Attributes:
        done: ids of the stages that the workers of this run completed.
        failed: the failure of the stage that failed last; None if no stage failed.
    """

    done: frozenset[str]
    failed: str | None


def run_stages(
    store: Path,
    stages: Sequence[Stage],
    threads: Mapping[str, int],
    cores: int,
    gpus: int,
    options: Mapping[str, Sequence[str]],
) -> SchedulerResult:
    """Run stages, each after its inputs; see `schedule`.

    Args:
        store: the folder of all artifacts; it must contain the specs of the stages.
        stages: the stages to run; workers skip stages that are done and not stale.
        threads: number of cores for each stage, by id; at most `cores`.
        cores: maximum number of cores in use at any time.
        gpus: maximum number of GPUs in use at any time; no stage may need more.
        options: options of each stage's worker, by id of the stage.
    """
    reading, writing = os.pipe()
    with ExitStack() as stack:
        stack.callback(os.close, reading)
        pool = stack.enter_context(ThreadPoolExecutor(max_workers=cores))
        # Close the write end before the pool waits for its threads. These wait for their workers,
        # which end when the write end is closed.
        stack.callback(os.close, writing)

        def start(stage_id: str) -> Future[WorkerExit]:
            return pool.submit(_run_worker, (str(store), stage_id, *options[stage_id]), reading)

        return schedule(stages, threads, cores, gpus, start)


def schedule(
    stages: Sequence[Stage],
    threads: Mapping[str, int],
    cores: int,
    gpus: int,
    start: Callable[[str], Future[WorkerExit]],
) -> SchedulerResult:
    """Start each stage when its inputs are done and enough cores and GPUs are free.

    Among the stages that are ready, the one with the longest chain of dependent stages starts
    first. A failed stage is retried once. If it fails again, the stages that do not depend on it
    still run.
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
            free_cores = cores - sum(threads[other] for other in running.values())
            free_gpus = gpus - sum(by_id[other].gpus for other in running.values())
            if threads[id] <= free_cores and by_id[id].gpus <= free_gpus:
                ready.remove(id)
                attempts[id] += 1
                running[start(id)] = id
        if not running:
            return SchedulerResult(done=frozenset(done), failed=failed)
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            id, result = running.pop(future), future.result()
            if result.failure is None:
                order.done(id)
                done.update([id] if result.did_stage else [])
            elif attempts[id] < _ATTEMPTS:
                ready.append(id)
            else:
                failed = result.failure


def _inputs_within(stages: Mapping[str, Stage], stage_id: str) -> list[str]:
    return [read.id for read in stages[stage_id].inputs if read.id in stages]


def _chain_lengths(stages: Sequence[Stage]) -> dict[str, int]:
    """For each stage, return the length of the longest chain of dependents that begins with it."""
    lengths = {stage.id: 1 for stage in stages}
    for stage in reversed(stages):
        for read in stage.inputs:
            if read.id in lengths:
                lengths[read.id] = max(lengths[read.id], lengths[stage.id] + 1)
    return lengths


def _run_worker(arguments: Sequence[str], pipe: int) -> WorkerExit:
    # Files and not pipes, because a command that outlives its worker would keep a pipe open.
    with TemporaryFile() as stdout, TemporaryFile() as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", _WORKER, *arguments, "--driver", str(pipe)],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            pass_fds=[pipe],
            # In another process group, a worker does not receive Ctrl-C. The driver receives it
            # and ends its workers.
            process_group=0,
        )
        code = process.wait()
        did_stage, lines = bool(_lines_of(stdout)), _lines_of(stderr)
    if code == 0:
        return WorkerExit(did_stage=did_stage, failure=None)
    if code < 0:  # the worker was killed before it could end its command
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    reason = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
    message = "\n".join(lines[-_MESSAGE_LINES:])
    return WorkerExit(did_stage=False, failure=message or f"The worker of {arguments[1]} {reason}.")


def _lines_of(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return file.read().decode(errors="replace").rstrip().splitlines()
