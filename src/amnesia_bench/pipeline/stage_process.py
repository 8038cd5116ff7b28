"""Run a stage in another process, which is either forked by the fork server or newly started."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import MissingEnvironmentError
from amnesia_bench.pipeline.devices import VARIABLE
from amnesia_bench.pipeline.slurm.nodes import rendezvous_words, srun_words
from amnesia_bench.records.stages import StageSpec

_EXECUTE = "amnesia_bench.pipeline.execute"
_LAUNCH = "amnesia_bench.training.launch"
STARTED = "$ amnesia "
# Value of GOMP_SPINCOUNT, which limits how long libgomp threads spin at a barrier. By default, two
# threads are ten times slower than one if another process competes for a core; without spinning,
# they are slower than one even if no process competes (docs/benchmarks.md).
_SPINS = "10000"
# Settings of glibc's allocator. Memory that was returned to the system costs page faults when it is
# allocated again, so glibc is told to keep up to 4 GiB of free memory, in huge pages. Only blocks
# over 32 MiB, the largest threshold that glibc accepts, are mapped and returned separately.
_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:"
    "glibc.malloc.trim_threshold=4294967296"
)


def stage_environment(gpus: Sequence[str] = ()) -> dict[str, str]:
    """Return the environment variables for a stage: those of this process, tuned for speed.

    The stage sees only the given GPUs. Without any it sees none, so that stages that run at the
    same time on a machine with GPUs do not all use the first one.
    """
    inherited = os.environ.get("GLIBC_TUNABLES")
    tunables = _TUNABLES if inherited is None else f"{_TUNABLES}:{inherited}"
    restricted = {"GLIBC_TUNABLES": tunables, VARIABLE: ",".join(gpus)}
    return {"GOMP_SPINCOUNT": _SPINS, **os.environ, **restricted}


@dataclass(frozen=True, kw_only=True)
class StageLauncher:
    """How a worker starts the processes of stages.

    Attributes:
        server: path of a fork server's socket; None starts a new process. A stage with GPUs is
            never forked, since the server sees none.
        python: the words that start Python, for example in a container.
        nodes: number of nodes of the batch job in which the worker runs; 0 outside of a batch job.
        max_restarts: how often in a row a batch job may be restarted without progress.
    """

    server: str | None = None
    python: tuple[str, ...] = (sys.executable,)
    nodes: int = 0
    max_restarts: int = 0


def run_spec(
    store: Path, spec: StageSpec, log: Path, gpus: Sequence[str], launcher: StageLauncher
) -> int:
    """Execute a stage in another process and wait for it; its output is appended to `log`.

    Args:
        store: the folder of all artifacts.
        spec: the spec of the stage, which must also be in the store.
        log: the log file.
        gpus: the GPUs of this machine to make visible to the stage. A training stage starts one
            process per GPU.
        launcher: how to start the process.

    Returns:
        The exit code of the process; -N if signal N ended it.
    """
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{STARTED}{shlex.join(spec.command)}\n")
    if launcher.server is not None and not gpus:
        code = _run_forked(launcher.server, store, spec, log)
        if code is not None:
            return code
    several_nodes = launcher.nodes > 1 and spec.front_door == "train"
    words = [*launcher.python, "-P"]
    if several_nodes:
        words = [*srun_words(launcher.nodes, len(gpus)), *words]
        words += ["-m", _LAUNCH, *rendezvous_words(launcher.nodes, len(gpus))]
    elif len(gpus) > 1 and spec.front_door == "train":
        words += ["-m", _LAUNCH, "--nproc-per-node", str(len(gpus))]
    if shutil.which(words[0]) is None:
        raise MissingEnvironmentError(
            f"{words[0]}: not found, so the stage cannot be started",
            hint="Set cluster.python, cluster.vllm_python or cluster.container to what exists on "
            "the nodes.",
        )
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(spec.threads))
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [*words, "-m", _EXECUTE, str(store), spec.id],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**stage_environment(gpus), **counts},
        ) as process,
    ):
        try:
            return process.wait()
        except BaseException:
            # srun passes SIGUSR1 to all nodes. On SIGTERM it would kill them before they can save.
            process.send_signal(signal.SIGUSR1 if several_nodes else signal.SIGTERM)
            raise


def _run_forked(server: str, store: Path, spec: StageSpec, log: Path) -> int | None:
    """Run a stage in a forked process, and return its exit code; None if the server has ended."""
    request = {
        "store": str(store),
        "stage": spec.id,
        "log": str(log.resolve()),
        "threads": spec.threads,
    }
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(server)
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = connection.makefile("rb").readline()
        except OSError:  # the server was killed; the caller starts a new process
            return None
    return int(answer) if answer else None
