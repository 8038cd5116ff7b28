"""Exceptions for expected failures, and the exit code of each.

An expected failure is reported as one message: what is wrong, where and why, and what to type next.
Programming errors are not caught, so Python prints their traceback.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the `amnesia` command; scripts may rely on them."""

    DONE = 0
    USER_ERROR = 2
    REGRESSION = 3
    STAGE_FAILED = 4
    BUSY = 5
    ENVIRONMENT = 6
    REQUEUE = 75  # EX_TEMPFAIL: a signal stopped the work; the same command resumes it


class AmnesiaError(Exception):
    """Base class of all expected failures.

    Args:
        what: a message that states what is wrong and where, with the offending name and value.
        hint: what the user should type next; printed on a separate line.
    """

    exit_code: ExitCode = ExitCode.STAGE_FAILED

    def __init__(self, what: str, *, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return self.what if self.hint is None else f"{self.what}\n{self.hint}"


class UserError(AmnesiaError):
    """The command, the config or an input folder is wrong; nothing was written."""

    exit_code = ExitCode.USER_ERROR


class NewerVersionError(UserError):
    """A newer version of amnesia-bench wrote a file, and this one cannot read it."""


class StageFailedError(AmnesiaError):
    """The work started but could not be finished or verified, so no output is marked finished."""

    exit_code = ExitCode.STAGE_FAILED


class BusyError(AmnesiaError):
    """Another process is writing the same artifact."""

    exit_code = ExitCode.BUSY


class StoppedError(AmnesiaError):
    """A signal stopped the work after its state was saved; the same call or command resumes it."""

    exit_code = ExitCode.REQUEUE


class MissingEnvironmentError(AmnesiaError):
    """This machine lacks a package, a device or a permission."""

    exit_code = ExitCode.ENVIRONMENT
