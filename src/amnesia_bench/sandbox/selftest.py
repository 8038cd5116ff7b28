"""Test the sandbox before it is used: a program tries to get out and reports how far it got."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.resources import files

from amnesia_bench.errors import MissingEnvironmentError
from amnesia_bench.sandbox.launcher import INSTALL, Launcher, find_launcher
from amnesia_bench.sandbox.program import MIB, Limits
from amnesia_bench.sandbox.session import ProgramStoppedError, SandboxError

# Small limits are reached quickly; the kernel's mechanisms are the same.
LIMITS = Limits(seconds_per_test=20.0, memory_bytes=512 * MIB)


@dataclass(frozen=True)
class Check:
    """One way out, whether it is closed, and the result of the attempt."""

    name: str
    contained: bool
    result: str


def run_checks(launcher: Launcher) -> tuple[Check, ...]:
    """Run the probe in a sandbox.

    Raises:
        MissingEnvironmentError: the sandbox does not start; the message gives the reason.
    """
    probe = files(__package__).joinpath("probe.py").read_text("utf-8")
    try:
        with launcher.started(LIMITS, LIMITS.seconds_per_test) as session:
            deadline = time.monotonic() + LIMITS.seconds_per_test
            answer = session.ask({"code": probe, "function": "probe"}, deadline)
            if "error" not in answer:
                answer = session.ask("null", deadline)
    except (SandboxError, ProgramStoppedError) as error:
        raise MissingEnvironmentError(f"no sandbox: {error}", hint=INSTALL) from error
    if "returned" not in answer:
        raise MissingEnvironmentError(f"no sandbox: its probe ended in {answer.get('error')}")
    return tuple(Check(name, contained, result) for name, contained, result in answer["returned"])


def refuse_leaks(checks: tuple[Check, ...]) -> None:
    """Refuse a sandbox with an open way out.

    Raises:
        MissingEnvironmentError: at least one check found an open way out.
    """
    if leaks := [f"{check.name} ({check.result})" for check in checks if not check.contained]:
        raise MissingEnvironmentError(f"the sandbox leaks: {'; '.join(leaks)}", hint=INSTALL)


def open_launcher(*, unsafe_no_sandbox: bool = False) -> Launcher:
    """Return a launcher whose sandbox passed the self-test.

    Args:
        unsafe_no_sandbox: run programs as plain processes, which have limits of memory and time
            but may read and send everything that their user may.

    Raises:
        MissingEnvironmentError: there is no sandbox, or it leaks; the message gives the reason.
    """
    launcher = find_launcher(unsafe_no_sandbox=unsafe_no_sandbox)
    if launcher.bwrap is not None:
        refuse_leaks(run_checks(launcher))
    return launcher
