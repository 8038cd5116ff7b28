"""A server that imports all packages once and forks a process for each stage.

Importing torch and transformers takes seconds, and a run on a laptop has about a hundred stages of
a few seconds each. The server itself must not compute anything, because a library that has already
started threads does not work after a fork.

When a worker disconnects, the server terminates the worker's stage. When the driver ends, the
server waits for the running stages and then exits.

The server and its children see no GPU: CUDA does not work after a fork either, and some packages
look for devices when they are imported. Stages with GPUs run in new processes.
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
    # Our code imports these modules inside functions, because their imports take seconds.
    "lm_eval.tasks",
    "rich.table",
    "transformers.convert_slow_tokenizer",
)
_POLL_SECONDS = 0.05


@contextmanager
def fork_server(folder: Path) -> Iterator[str]:
    """Start a server, and yield the path of its Unix socket, which is in `folder`.

    The path of `folder` must be short, because the length of socket paths is limited. Requests wait
    until the server has imported all modules.
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
            # Ctrl-C signals every process in the driver's process group, but only the driver may
            # react to it.
            start_new_session=True,
        )
    try:
        yield path
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def serve(listener: socket.socket) -> None:
    """Fork a child for each request; return when stdin is closed and all children have ended."""
    for module in _PRELOADED:
        if select.select([sys.stdin], [], [], 0)[0]:
            return  # the driver has already ended
        # If a package is missing, the stage that needs it reports the error.
        with suppress(ImportError):
            import_module(module)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running: dict[int, socket.socket | None] = {}
    accepting = True
    while accepting or running:
        workers = [worker for worker in running.values() if worker is not None]
        sources = [*workers, *([listener, sys.stdin] if accepting else [])]
        ready, _, _ = select.select(sources, [], [], _POLL_SECONDS if running else None)
        if sys.stdin in ready:
            accepting = False
        elif listener in ready:
            connection, _ = listener.accept()
            if pid := _start(connection, [listener, *workers]):
                running[pid] = connection
        for pid, worker in list(running.items()):
            if worker in ready:  # the worker disconnected
                os.kill(pid, signal.SIGTERM)
                running[pid] = None
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _answer(running.pop(pid), os.waitstatus_to_exitcode(status))


def _answer(worker: socket.socket | None, code: int) -> None:
    if worker is None:
        return
    with worker, suppress(OSError):
        worker.sendall(b"%d\n" % code)


def _start(connection: socket.socket, others: Sequence[socket.socket]) -> int | None:
    """Fork a child for a worker's request, and return the child's process id.

    Returns None if the worker disconnected before it sent a request.
    """
    try:
        request = json.loads(connection.makefile("rb").readline())
    except (OSError, ValueError):
        connection.close()
        return None
    pid = os.fork()
    if pid:
        return pid
    for inherited in (connection, *others):
        inherited.close()
    os._exit(_child(request))


def _child(request: dict[str, Any]) -> int:
    """Execute a stage in the forked child, and return its exit code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Path(os.devnull).open("rb") as empty, Path(request["log"]).open("ab") as log:
        os.dup2(empty.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(request["threads"])
    try:
        execute = import_module(_EXECUTE).execute
        code = cast("int", execute(Path(request["store"]), request["stage"]))
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
    with socket.socket(fileno=int(sys.argv[1])) as inherited_listener:
        serve(inherited_listener)
