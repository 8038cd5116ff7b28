"""A command of a stage in a process of its own: forked from a fork server, or started anew."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from amnesia_bench.pipeline.devices import VARIABLE

_MAIN = "amnesia_bench.cli.main"
_LAUNCH = "amnesia_bench.training.launch"
STARTED = "$ amnesia "
# How long a thread that waits for others keeps its core, for GNU's OpenMP. By default two threads
# take ten times as long as one where another process wants a core; where they do not wait at all
# they take longer than one even if none does (docs/benchmarks.md).
_SPINS = "10000"
# For glibc: memory that is given back to the system costs page faults at the next call. So it keeps
# all (4 GiB) of what it does not map for itself (32 MiB, the most it takes), in huge pages.
_TUNABLES = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:"
    "glibc.malloc.trim_threshold=4294967296"
)


def stage_environment() -> dict[str, str]:
    """Return the environment of commands: that of this process, and what makes them faster."""
    given = os.environ.get("GLIBC_TUNABLES")
    tunables = _TUNABLES if given is None else f"{_TUNABLES}:{given}"
    return {"GOMP_SPINCOUNT": _SPINS, **os.environ, "GLIBC_TUNABLES": tunables}


def run_command(
    command: Sequence[str], log: Path, threads: int, gpus: Sequence[str], server: str | None
) -> int:
    """Run `amnesia` with these arguments and wait for it; its output is appended to `log`.

    Args:
        command: the arguments.
        log: the file.
        threads: how many it computes with.
        gpus: those it may see, or none: then whatever is there. More than one start as many
            processes of a training.
        server: the socket of a fork server; None starts the command anew.

    Returns:
        Its exit code; negative is the signal that ended it.
    """
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{STARTED}{' '.join(command)}\n")
    if server is not None and (code := _ask(server, command, log, threads)) is not None:
        return code
    start = ["-m", _MAIN]
    if len(gpus) > 1 and command[0] == "train":
        start = ["-m", _LAUNCH, "--nproc-per-node", str(len(gpus)), *start]
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    environment = {**stage_environment(), **counts}
    if gpus:
        environment[VARIABLE] = ",".join(gpus)
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [sys.executable, "-P", *start, *command],
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


def _ask(server: str, command: Sequence[str], log: Path, threads: int) -> int | None:
    """Return the exit code of a command that the server runs; None if there is no server."""
    asked = {"command": list(command), "log": str(log.resolve()), "threads": threads}
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(server)
            connection.sendall(json.dumps(asked).encode() + b"\n")
            answer = connection.makefile("rb").readline()
        except OSError:  # it was killed, and the command is started anew
            return None
    return int(answer) if answer else None
