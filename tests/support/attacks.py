"""A problem whose answer is a secret, and ways to run hostile programs on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from amnesia_bench.reasoning.code.grading import Grade, grade
from amnesia_bench.reasoning.code.problems import CodeProblem, ProgramTest
from amnesia_bench.records.evaluation import Outcome
from amnesia_bench.records.reasoning import Checker
from amnesia_bench.sandbox import Launcher, Limits
from amnesia_bench.sandbox.program import MIB

SECRET = "expected-9f3c51"
PROBLEM = CodeProblem(
    name="attacked",
    question="",
    starter_code="",
    function=None,
    sha256="",
    source=Path("none"),
    offset=0,
)
TESTS = (ProgramTest(input="first\n", output=f"{SECRET}\n"), ProgramTest(input="2\n", output="4\n"))
LIMITS = Limits(seconds_per_test=1.0, wall_factor=6.0, memory_bytes=512 * MIB)
HONEST = f"x = input()\nprint('{SECRET}' if x == 'first' else 2 * int(x))"
# What the driver's own frames look like, for programs that write some.
FRAME = """
import json, os
def frame(data):
    data = data if isinstance(data, bytes) else json.dumps(data).encode()
    return len(data).to_bytes(8, "big") + data
def everywhere(data):
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, data)
        except OSError:
            pass
"""

Result = TypeVar("Result")


def attack(
    sandbox: Launcher, code: str, limits: Limits = LIMITS, checker: Checker = Checker.LCB
) -> Grade:
    """Grade a hostile program, and after it an honest one."""
    found = grade(code, PROBLEM, TESTS, sandbox, limits, checker)
    generous = Limits(seconds_per_test=20.0)
    assert grade(HONEST, PROBLEM, TESTS, sandbox, generous, checker).outcome is Outcome.CORRECT
    return found


def printed(sandbox: Launcher, code: str, text: str = "first\n") -> str:
    """Return what a program prints: what it has found out."""
    with sandbox.started(Limits(), 20) as session:
        deadline = time.monotonic() + 20
        assert session.ask({"code": code, "function": None}, deadline) == {"loaded": True}
        answer = session.ask(text, deadline)
    assert "printed" in answer, answer
    return str(answer["printed"])


def host_growth(run: Callable[[], Result]) -> tuple[Result, int]:
    """Return what a call returns, and by how many bytes the machine's free memory fell meanwhile.

    What else the machine does is in it, so this is an upper bound.
    """
    before = lowest = _available()
    done = threading.Event()

    def watch() -> None:
        nonlocal lowest
        while not done.wait(0.02):
            lowest = min(lowest, _available())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = run()
    finally:
        done.set()
        watcher.join()
    return result, before - lowest


def _available() -> int:
    lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
