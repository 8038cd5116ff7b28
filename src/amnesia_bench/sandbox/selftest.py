"""Try the sandbox before it is trusted: a program tries to get out and says how far it got."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.resources import files

from amnesia_bench.errors import MissingEnvironmentError
from amnesia_bench.sandbox.launcher import INSTALL, Launcher, find_launcher
from amnesia_bench.sandbox.program import MIB, Limits
from amnesia_bench.sandbox.session import ProgramStoppedError, SandboxError

# Small, so that reaching them is quick; the kernel's mechanisms are the same.
LIMITS = Limits(seconds_per_test=20.0, memory_bytes=512 * MIB)


@dataclass(frozen=True)
class Check:
    """One way out, and whether it is closed. `found` says what the program met."""

    name: str
    contained: bool
    found: str


def run_checks(launcher: Launcher) -> tuple[Check, ...]:
    """Run the probe in a sandbox.

    Raises:
        MissingEnvironmentError: the sandbox does not start; says why.
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
    return tuple(Check(name, contained, found) for name, contained, found in answer["returned"])


def refuse_leaks(checks: tuple[Check, ...]) -> None:
    """Accept checks only if every way out is closed.

    Raises:
        MissingEnvironmentError: one is open.
    """
    if leaks := [f"{check.name} ({check.found})" for check in checks if not check.contained]:
        raise MissingEnvironmentError(
            f"the sandbox does not hold: {'; '.join(leaks)}", hint=INSTALL
        )


def open_launcher(*, unsafe_no_sandbox: bool = False) -> Launcher:
    """Return a launcher whose sandbox was tried and held.

    Args:
        unsafe_no_sandbox: run programs as plain processes, with limits of memory and time but
            free to read and send whatever their user may.

    Raises:
        MissingEnvironmentError: there is no sandbox, or it does not hold; says why.
    """
    launcher = find_launcher(unsafe_no_sandbox=unsafe_no_sandbox)
    if launcher.bwrap is not None:
        refuse_leaks(run_checks(launcher))
    return launcher
