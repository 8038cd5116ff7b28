"""Publish while stages run: in a process of its own, so that no service can harm the run."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from amnesia_bench.errors import AmnesiaError
from amnesia_bench.pipeline.bookkeeping import StageState, state_of
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.pipeline.tracked.service import TRACKING
from amnesia_bench.printable import message
from amnesia_bench.store.files import explaining_write_errors, make_folder

POLL_SECONDS = 60.0
_LIMIT_SECONDS = 900.0  # the longest that one publication may take
_KILL_SECONDS = 10.0
_LOG, _SHOWN_LINES = "log.txt", 3


@contextmanager
def publishing_stages(
    command: Sequence[str], store: Path, stages: Sequence[Stage]
) -> Iterator[None]:
    """Run `amnesia track` whenever stages have finished, and once more when the block ends.

    If the block is interrupted, nothing more is published; the same command does it later.

    Args:
        command: the arguments of `amnesia track`.
        store: the folder of all artifacts.
        stages: all stages of the run.
    """
    log = store / TRACKING / _LOG
    with explaining_write_errors(log.parent, "no stage was started"):
        make_folder(log.parent)
    stop = threading.Event()

    def watch() -> None:
        published = 0
        while not stop.wait(POLL_SECONDS):
            # The run itself reports a store that cannot be read.
            with suppress(AmnesiaError, OSError):
                done = sum(state_of(store, s.kind, s.id) is StageState.CACHED for s in stages)
                if done > published:
                    published = done
                    _track(command, log, stop)

    thread = threading.Thread(target=watch, name="amnesia-publisher", daemon=True)
    thread.start()
    interrupted = True
    try:
        yield
        interrupted = False
    except Exception:
        interrupted = False
        raise
    finally:
        stop.set()
        thread.join()
        if not interrupted:
            for line in _track(command, log, threading.Event()):
                sys.stderr.write(message(f"tracking: {line}\n"))


def _track(command: Sequence[str], log: Path, stop: threading.Event) -> list[str]:
    """Run `amnesia track`, and return the last lines of its output.

    It is ended if `stop` is set, or if it takes too long.
    """
    words = [sys.executable, "-P", "-m", "amnesia_bench.cli.main", "track", *command]
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + _LIMIT_SECONDS
        while process.poll() is None and time.monotonic() < end and not stop.wait(0.2):
            pass
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_KILL_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:  # the disk is full, for example
        return [f"nothing was published ({error})"]
    return lines[-_SHOWN_LINES:]
