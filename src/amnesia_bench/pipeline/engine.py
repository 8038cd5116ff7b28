"""Snakemake, in this process: it orders the stages, keeps the cores busy, and tries again once.

What is done, and by whom, is ours (`worker`): Snakemake sees the stages that are not done yet, in
a folder of its own that is removed in the end, and never what an earlier run knew.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from amnesia_bench.errors import MissingEnvironmentError
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.store.files import write_json

_SNAKEFILE = Path(__file__).with_name("Snakefile")
_WORKER = "amnesia_bench.pipeline.worker"
_LOG, _WORKERS, _DONE = "snakemake.log", "workers.log", "done.txt"


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What became of stages: those that workers of this run did, by id, and what failed, if any."""

    done: frozenset[str]
    failed: str | None


def check_installed() -> None:
    """Refuse to begin where Snakemake is not installed.

    Raises:
        MissingEnvironmentError: it is not.
    """
    if find_spec("snakemake") is None:
        raise MissingEnvironmentError(
            "running a pipeline needs Snakemake.", hint='pip install "amnesia-bench[pipeline]"'
        )


def run_stages(
    store: Path,
    stages: Sequence[Stage],
    threads: Mapping[str, int],
    cores: int,
    server: str | None,
    folder: Path,
) -> Ran:
    """Run stages, each after those it reads.

    Args:
        store: the folder of all artifacts; the orders of the stages are there.
        stages: what is to be done; of those that are done a worker looks if they are stale.
        threads: how many cores each of them takes, by id.
        cores: how many there are.
        server: the socket of a fork server.
        folder: an empty folder of this machine for what Snakemake writes.
    """
    from snakemake.api import SnakemakeApi
    from snakemake.exceptions import WorkflowError
    from snakemake.scheduling.greedy import SchedulerSettings
    from snakemake.settings import types
    from snakemake.settings.enums import Quietness, RerunTrigger

    gpus = max((stage.gpus for stage in stages), default=0)
    failed = None
    with _stopping_workers(), _quiet(folder / _LOG):
        write_json(folder / "plan.json", _plan(store, stages, threads, server))
        try:
            with SnakemakeApi(
                types.OutputSettings(quiet={Quietness.ALL}, enable_file_logging=False)
            ) as api:
                workflow = api.workflow(
                    types.ResourceSettings(cores=cores, resources={"gpu": gpus}),
                    # Nothing in the user's cache, which may be read-only.
                    storage_settings=types.StorageSettings(
                        shared_fs_usage=types.SharedFSUsage.all()
                        - {types.SharedFSUsage.SOURCE_CACHE}
                    ),
                    workflow_settings=types.WorkflowSettings(runtime_source_cache_path=folder),
                    snakefile=_SNAKEFILE,
                    workdir=folder,
                )
                graph = workflow.dag(
                    types.DAGSettings(rerun_triggers=frozenset({RerunTrigger.INPUT}))
                )
                graph.execute_workflow(
                    executor="local",
                    execution_settings=types.ExecutionSettings(
                        lock=False, keep_going=True, retries=1, latency_wait=60
                    ),
                    scheduling_settings=types.SchedulingSettings(scheduler="greedy"),
                    scheduler_settings=SchedulerSettings(),
                    greedy_scheduler_settings=SchedulerSettings(),
                )
        except WorkflowError as error:
            failed = _tail(folder / _WORKERS) or _tail(folder / _LOG) or str(error)
    done = (folder / _DONE).read_text().split() if (folder / _DONE).is_file() else []
    return Ran(done=frozenset(done), failed=failed)


def _tail(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return "\n".join(text.rstrip().splitlines()[-8:])


def _plan(
    store: Path, stages: Sequence[Stage], threads: Mapping[str, int], server: str | None
) -> list[dict[str, object]]:
    ids = {stage.id for stage in stages}
    steps = _steps_after(stages)
    given = [] if server is None else [server]
    return [
        {
            "name": f"stage_{number}",
            "stamp": f"{stage.id}.done",
            "inputs": [f"{each.id}.done" for each in stage.inputs if each.id in ids],
            "threads": threads[stage.id],
            "gpus": stage.gpus,
            # What most others wait for comes first.
            "priority": steps[stage.id],
            # Where the driver was started, as its environment may name paths from there.
            "command": f"(cd {shlex.quote(str(Path.cwd()))} && "
            + shlex.join([sys.executable, "-P", "-m", _WORKER, str(store), stage.id, *given])
            + f") >> {_DONE} 2>> {_WORKERS}",
        }
        for number, stage in enumerate(stages)
    ]


def _steps_after(stages: Sequence[Stage]) -> dict[str, int]:
    """Return the length of the longest chain of stages that begins with each."""
    steps = {stage.id: 1 for stage in stages}
    for stage in reversed(stages):
        for each in stage.inputs:
            if each.id in steps:
                steps[each.id] = max(steps[each.id], steps[stage.id] + 1)
    return steps


@contextmanager
def _stopping_workers() -> Iterator[None]:
    """Let a signal to this process end its workers, then do what it did before.

    Snakemake would wait for them, and would not say that there was a signal.
    """
    import psutil  # type: ignore[import-untyped]
    from snakemake.scheduling.job_scheduler import JobScheduler

    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if any(_WORKER in word for word in process.cmdline()):
                    process.terminate()
        raise SystemExit  # what ends Snakemake's loop

    theirs = JobScheduler.exit_gracefully
    both = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours = {number: handler for number, handler in both.items() if handler != signal.SIG_IGN}
    JobScheduler.exit_gracefully = staticmethod(stop)
    try:
        for number in ours:
            signal.signal(number, stop)
        yield
    finally:
        JobScheduler.exit_gracefully = theirs
        for number, handler in ours.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


@contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """Send what Snakemake says into a file; it changes the working folder and the handlers."""
    before = Path.cwd()
    with log.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            yield
        finally:
            os.chdir(before)
            logging.getLogger("snakemake").handlers.clear()
