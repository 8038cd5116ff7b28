"""Processes that have imported everything already.

Importing torch and transformers takes seconds, and a pipeline on a laptop runs a hundred stages of
a few seconds each. So one server imports them and forks a child per stage. It computes nothing
itself: a library that has started its threads does not survive a fork.

A worker that goes away ends its stage. When the driver goes away, the server finishes what is
running and ends.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from amnesia_bench import FRONT_DOORS
from amnesia_bench.pipeline.stage_process import stage_environment
from amnesia_bench.requests.stage_requests import STAGE_REQUESTS

_EXECUTE = "amnesia_bench.pipeline.execute"
_PRELOADED = (
    _EXECUTE,
    *sorted({f"amnesia_bench.{FRONT_DOORS[name].module}" for name in STAGE_REQUESTS}),
    "amnesia_bench.inference.transformers_engine",
    # Imported by our code only where it is used, since it takes seconds.
    "lm_eval.tasks",
    "rich.table",
    "transformers.convert_slow_tokenizer",
)
_POLL_SECONDS = 0.05


@contextmanager
def fork_server(folder: Path) -> Iterator[str]:
    """Start a server whose socket is in a folder with a short path; yields the socket.

    It takes stages as soon as it is ready.
    """
    path = str(folder / "forks")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            env=stage_environment(),
            # Ctrl-C reaches the whole group; the driver alone decides what ends.
            start_new_session=True,
        )
    try:
        yield path
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def serve(listener: socket.socket) -> None:
    """Fork a child for each stage that is asked for, until stdin ends and all are done."""
    for module in _PRELOADED:
        if select.select([sys.stdin], [], [], 0)[0]:
            return  # the driver has ended before there was anything to do
        # What an installation lacks, its stages will say.
        with suppress(ImportError):
            import_module(module)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running: dict[int, socket.socket | None] = {}
    open_for_more = True
    while open_for_more or running:
        listening = [each for each in running.values() if each is not None]
        waited = [*listening, *([listener, sys.stdin] if open_for_more else [])]
        ready, _, _ = select.select(waited, [], [], _POLL_SECONDS if running else None)
        if sys.stdin in ready:
            open_for_more = False
        elif listener in ready:
            connection, _ = listener.accept()
            if pid := _start(connection, [listener, *listening]):
                running[pid] = connection
        for pid, asker in list(running.items()):
            if asker in ready:  # the worker went away, which ends its stage
                os.kill(pid, signal.SIGTERM)
                running[pid] = None
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _answer(running.pop(pid), os.waitstatus_to_exitcode(status))


def _answer(asker: socket.socket | None, code: int) -> None:
    if asker is None:
        return
    with asker, suppress(OSError):
        asker.sendall(b"%d\n" % code)


def _start(connection: socket.socket, others: Sequence[socket.socket]) -> int | None:
    """Fork a child for what a worker asks; None if it went away before it had."""
    try:
        asked = json.loads(connection.makefile("rb").readline())
    except (OSError, ValueError):
        connection.close()
        return None
    pid = os.fork()
    if pid:
        return pid
    for each in (connection, *others):
        each.close()
    os._exit(_child(asked))


def _child(asked: dict[str, Any]) -> int:
    """Execute the stage, and return its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Path(os.devnull).open("rb") as nothing, Path(asked["log"]).open("ab") as log:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(asked["threads"])
    try:
        code = cast("int", import_module(_EXECUTE).execute(Path(asked["store"]), asked["stage"]))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as inherited:
        serve(inherited)
