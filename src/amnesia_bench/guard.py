"""Run a command or a stage: failures become exit codes, and no output stays half-written."""

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

# The exit codes that a shell reports for a command that one of these signals ended.
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM


class _TerminatedError(BaseException):
    """SIGTERM as an exception: context managers remove half-written output as it passes."""


def guarded(title: str, run: Callable[[], ExitCode], output: Path | None) -> int:
    """Run a command and return its exit code.

    Args:
        title: prefix of the messages on stderr, such as "amnesia restore".
        run: the command.
        output: the folder that the command writes; None if it writes none.
    """
    with _terminating():
        return _guarded(title, run, output)


def only_rank_zero_reports(run: Callable[[], ExitCode]) -> ExitCode:
    """Run a training process; only rank 0 prints the error message, on behalf of all ranks."""
    try:
        return run()
    except AmnesiaError as error:
        if os.environ.get("RANK", "0") == "0":
            raise
        return error.exit_code


def _guarded(title: str, run: Callable[[], ExitCode], output: Path | None) -> int:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # the caller closed it
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - to the very end
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
            # Running it again would only fail with "already exists".
            sys.stderr.write(message(f"{title}: {outcome}, but {output} was complete already\n"))
            return int(ExitCode.DONE)
        sys.stderr.write(f"{title}: {outcome}\n")
        return INTERRUPTED if interrupted else TERMINATED


def _is_finished(output: Path | None) -> bool:
    """Return whether the output folder of a command is complete: its manifest is written last."""
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
