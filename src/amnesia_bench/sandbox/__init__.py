"""Run untrusted programs without access to the network, to files or to environment variables.

Hard limits bound the time, memory, threads and output of each program.
"""

from amnesia_bench.sandbox.launcher import Launcher, find_launcher
from amnesia_bench.sandbox.program import Limits
from amnesia_bench.sandbox.selftest import Check, open_launcher, refuse_leaks, run_checks
from amnesia_bench.sandbox.session import ProgramStoppedError, SandboxError, Session, Stop

__all__ = [
    "Check",
    "Launcher",
    "Limits",
    "ProgramStoppedError",
    "SandboxError",
    "Session",
    "Stop",
    "find_launcher",
    "open_launcher",
    "refuse_leaks",
    "run_checks",
]
