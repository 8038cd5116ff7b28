"""A stage in a process of its own: forked from the fork server, or started."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from amnesia_bench.pipeline.devices import VARIABLE
from amnesia_bench.records.stages import StageSpec

_EXECUTE = "amnesia_bench.pipeline.execute"
_LAUNCH = "amnesia_bench.training.launch"
STARTED = "$ amnesia "
# GOMP_SPINCOUNT: how long libgomp threads spin at a barrier. The default makes two threads ten
# times slower than one when another process competes for a core; without any spinning they are
# slower than one even when none does (docs/benchmarks.md).
_SPINS = "10000"
# For glibc: memory that is given back to the system costs page faults at the next call. So it keeps
# all (4 GiB) of what it does not map for itself (32 MiB, the most it takes), in huge pages.
_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:"
    "glibc.malloc.trim_threshold=4294967296"
)


def stage_environment() -> dict[str, str]:
    """Return the environment of stages: this process's, and settings that make them faster."""
    given = os.environ.get("GLIBC_TUNABLES")
    tunables = _TUNABLES if given is None else f"{_TUNABLES}:{given}"
    return {"GOMP_SPINCOUNT": _SPINS, **os.environ, "GLIBC_TUNABLES": tunables}


def run_spec(
    store: Path, spec: StageSpec, log: Path, gpus: Sequence[str], server: str | None
) -> int:
    """Execute a stage in another process and wait for it; its output is appended to `log`.

    Args:
        store: the folder of all artifacts.
        spec: of the stage; it is in the store.
        log: the file.
        gpus: the GPUs that it may see; none of them: whatever is there. More than one start as
            many processes of a training.
        server: the socket of a fork server; None starts a new process.

    Returns:
        Its exit code; negative is the signal that ended it.
    """
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{STARTED}{shlex.join(spec.command)}\n")
    if server is not None and (code := _ask(server, store, spec, log)) is not None:
        return code
    start = ["-m", _EXECUTE]
    if len(gpus) > 1 and spec.front_door == "train":
        start = ["-m", _LAUNCH, "--nproc-per-node", str(len(gpus)), *start]
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(spec.threads))
    environment = {**stage_environment(), **counts}
    if gpus:
        environment[VARIABLE] = ",".join(gpus)
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [sys.executable, "-P", *start, str(store), spec.id],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
        ) as process,
    ):
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            raise


def _ask(server: str, store: Path, spec: StageSpec, log: Path) -> int | None:
    """Return the exit code of a stage that the server forks; None if there is no server."""
    asked = {
        "store": str(store),
        "stage": spec.id,
        "log": str(log.resolve()),
        "threads": spec.threads,
    }
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(server)
            connection.sendall(json.dumps(asked).encode() + b"\n")
            answer = connection.makefile("rb").readline()
        except OSError:  # it was killed, and the stage is started in a new process
            return None
    return int(answer) if answer else None
