"""Run a command or a stage: turn failures into exit codes, and leave no half-written output."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from amnesia_bench.errors import AmnesiaError, ExitCode
from amnesia_bench.printable import message
from amnesia_bench.store.layout import MANIFEST

# The exit codes that a shell reports for a command killed by SIGINT or SIGTERM.
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


class _TerminatedError(BaseException):
    """Raised on SIGTERM, so that context managers remove half-written output."""


def guarded(title: str, run: Callable[[], ExitCode], output: Path | None) -> int:
    """Run a command and return its exit code.

    Args:
        title: prefix of the messages on stderr, such as "amnesia restore".
        run: a function that executes the command and returns its exit code.
        output: the output folder of the command; None if it has no output folder.
    """
    with _terminating():
        return _guarded(title, run, output)


def only_rank_zero_reports(run: Callable[[], ExitCode]) -> ExitCode:
    """Run one process of a training job; if it fails, only rank 0 prints the error message."""
    try:
        return run()
    except AmnesiaError as error:
        if os.environ.get("RANK", "0") == "0":
            raise
        return error.exit_code


def _guarded(title: str, run: Callable[[], ExitCode], output: Path | None) -> int:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller closed it
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - open until exit
    finished_before = _is_finished(output)
    try:
        return int(run())
    except AmnesiaError as error:
        if os.environ.get("AMNESIA_DEBUG") == "1":
            traceback.print_exc()
        sys.stderr.write(message(f"{title}: {error}\n"))
        return int(error.exit_code)
    except (KeyboardInterrupt, _TerminatedError) as end:
        interrupted = isinstance(end, KeyboardInterrupt)
        outcome = "interrupted" if interrupted else "terminated"
        if not finished_before and _is_finished(output):
            # Report success: a second run of the command would fail with "already exists".
            sys.stderr.write(message(f"{title}: {outcome}, but {output} was complete already\n"))
            return int(ExitCode.DONE)
        sys.stderr.write(f"{title}: {outcome}\n")
        return INTERRUPTED if interrupted else TERMINATED


def _is_finished(output: Path | None) -> bool:
    """Return whether an output folder is complete, that is, has its manifest (written last)."""
    try:
        return output is not None and (output / MANIFEST).is_file()
    except OSError:
        return False


@contextmanager
def _terminating() -> Iterator[None]:
    def terminate(number: int, frame: object) -> None:
        raise _TerminatedError

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
