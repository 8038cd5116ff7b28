"""Test the sandbox before use: a probe program attempts to escape and reports each result."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.resources import files

from amnesia_bench.errors import MissingEnvironmentError
from amnesia_bench.sandbox.launcher import INSTALL, Launcher, find_launcher
from amnesia_bench.sandbox.program import MIB, Limits
from amnesia_bench.sandbox.session import ProgramStoppedError, SandboxError

# A small memory limit keeps the test fast; the kernel enforces small and large limits alike.
LIMITS = Limits(seconds_per_test=20.0, memory_bytes=512 * MIB)


@dataclass(frozen=True)
class Check:
    """One attempted escape from the sandbox: its name, whether it was refused, and its result."""

    name: str
    contained: bool
    result: str


def run_checks(launcher: Launcher) -> tuple[Check, ...]:
    """Run the probe in a sandbox and return one check per attempted escape.

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
    """Raise an error if the sandbox does not contain programs.

    Raises:
        MissingEnvironmentError: at least one attempted escape succeeded.
    """
    if leaks := [f"{check.name} ({check.result})" for check in checks if not check.contained]:
        raise MissingEnvironmentError(f"the sandbox leaks: {'; '.join(leaks)}", hint=INSTALL)


def open_launcher(*, unsafe_no_sandbox: bool = False) -> Launcher:
    """Return a launcher whose sandbox passed the self-test.

    Args:
        unsafe_no_sandbox: run programs as plain processes. They have memory and time limits, but
            can read every file that their user can read and can use the network.

    Raises:
        MissingEnvironmentError: there is no sandbox, or an attempted escape from it succeeded; the
            message gives the reason.
    """
    launcher = find_launcher(unsafe_no_sandbox=unsafe_no_sandbox)
    if launcher.bwrap is not None:
        refuse_leaks(run_checks(launcher))
    return launcher
