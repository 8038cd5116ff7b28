"""Run programs that nobody has read: no network, no files, no environment, hard limits."""

from amnesia_bench.evals.sandbox.launcher import Launcher
from amnesia_bench.evals.sandbox.limits import Limits
from amnesia_bench.evals.sandbox.selftest import Check, open_launcher, run_checks
from amnesia_bench.evals.sandbox.session import ProgramStoppedError, SandboxError, Session, Stop

__all__ = [
    "Check",
    "Launcher",
    "Limits",
    "ProgramStoppedError",
    "SandboxError",
    "Session",
    "Stop",
    "open_launcher",
    "run_checks",
]
