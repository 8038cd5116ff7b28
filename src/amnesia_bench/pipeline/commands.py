"""A command of a stage in a process of its own: forked from a warm server, or started anew."""

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
COMPUTING = {
    # Sums of other numbers of threads are rounded otherwise, and a result is to follow from its
    # settings: not from what ran beside it, nor from the machine's cores.
    "OMP_NUM_THREADS": "1",
    # For glibc. Memory that is given back to the system costs page faults at the next call
    # (docs/benchmarks.md).
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:"
    "glibc.malloc.trim_threshold=4294967296",
}


def run_command(command: Sequence[str], log: Path, gpus: Sequence[str], server: str | None) -> int:
    """Run `amnesia` with these arguments and wait for it; its output is appended to `log`.

    Args:
        command: the arguments.
        log: the file.
        gpus: those it may see, or none: then whatever is there. More than one start as many
            processes of a training.
        server: the socket of a warm server; None starts the command anew.

    Returns:
        Its exit code; negative is the signal that ended it.
    """
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{STARTED}{' '.join(command)}\n")
    if server is not None and (code := _ask(server, command, log)) is not None:
        return code
    start = ["-m", _MAIN]
    if len(gpus) > 1 and command[0] == "train":
        start = ["-m", _LAUNCH, "--nproc-per-node", str(len(gpus)), *start]
    environment = {**os.environ, **COMPUTING}
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


def _ask(server: str, command: Sequence[str], log: Path) -> int | None:
    """Return the exit code of a command that the server runs; None if there is no server."""
    asked = {"command": list(command), "log": str(log.resolve())}
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(server)
            connection.sendall(json.dumps(asked).encode() + b"\n")
            answer = connection.makefile("rb").readline()
        except OSError:  # it was killed, and the command is started anew
            return None
    return int(answer) if answer else None
