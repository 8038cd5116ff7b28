"""Limits are those of the program, whatever else the machine does, and the grader's own memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnesia_bench.reasoning.code.grading import grade
from amnesia_bench.reasoning.code.problems import ProgramTest
from amnesia_bench.records.evaluation import Outcome
from amnesia_bench.records.reasoning import Checker
from amnesia_bench.sandbox import Launcher, Limits, ProgramStoppedError, Session
from tests.support.attacks import PROBLEM

TESTS = (ProgramTest(input="", output="done\n"),)
LIMITS = Limits(seconds_per_test=1.0, wall_factor=30.0)
BURN = "import threading, time\ndef burn(seconds):\n    start = time.thread_time()\n"
BURN += "    while time.thread_time() - start < seconds: pass\n"
each_checker = pytest.mark.parametrize("checker", Checker, ids=lambda checker: checker.value)


@contextmanager
def busy_core(neighbours: int) -> Iterator[None]:
    """Share one core with processes that never rest."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()
        os.sched_setaffinity(0, allowed)


@pytest.mark.programs
class TestTime:
    @each_checker
    def test_a_busy_machine_changes_no_verdict(self, launcher: Launcher, checker: Checker) -> None:
        # With five on the core the program is there for three seconds and uses 0.6 of them.
        with busy_core(4):
            found = grade(
                BURN + "burn(0.6)\nprint('done')", PROBLEM, TESTS, launcher, LIMITS, checker
            )
        assert found.outcome is Outcome.CORRECT, found.detail

    @each_checker
    @pytest.mark.parametrize(
        "code",
        [
            "burn(1.5)",
            "threads = [threading.Thread(target=burn, args=(0.8,)) for _ in range(2)]\n"
            "for each in threads: each.start()\nfor each in threads: each.join()",
            "threading.Thread(target=burn, args=(1.5,)).start()",
        ],
        ids=["one thread", "two threads", "a thread left running"],
    )
    def test_too_much_cpu_time_is_too_much(
        self, launcher: Launcher, checker: Checker, code: str
    ) -> None:
        found = grade(BURN + code + "\nprint('done')", PROBLEM, TESTS, launcher, LIMITS, checker)
        assert (found.outcome, found.detail) == (Outcome.TIME_LIMIT, "test 1 of 1: time limit")

    @each_checker
    def test_a_program_that_sleeps_ends_too(self, launcher: Launcher, checker: Checker) -> None:
        impatient = Limits(seconds_per_test=1.0, wall_factor=1.5)
        code = "import time\ntime.sleep(100)\nprint('done')"
        found = grade(code, PROBLEM, TESTS, launcher, impatient, checker)
        assert found.outcome is Outcome.TIME_LIMIT


# Grades programs whose answers have millions of small parts; prints by how much it has grown.
GRADER = """
import resource
from dataclasses import replace
from amnesia_bench.reasoning.code.grading import grade
from amnesia_bench.sandbox import Limits, open_launcher
from amnesia_bench.records.reasoning import Checker
from tests.support.attacks import FRAME, PROBLEM, TESTS
from tests.conftest import no_sandbox
launcher = open_launcher(unsafe_no_sandbox=no_sandbox() is not None)
function = replace(PROBLEM, function="f")
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
def judge(code, problem):
    for checker in Checker: grade(code, problem, TESTS, launcher, Limits(), checker)
judge("print('x')", PROBLEM); judge("def f(x): return x", function)
before = peak()
for text in ("[] " * 5000000, "\\n" * 15000000, "1 " * 7000000, "1\\n" * 7000000, "x" * 15000000):
    judge(f"print({text[:2]!r} * {len(text) // 2})", PROBLEM)
for value in ("[[]] * 3000000", "[{}] * 3000000", "[1.5] * 3000000", "'x' * 15000000"):
    judge(f"def f(*x): return {value}", function)
for part in ("[],", "{},", '"a",', "1e5,", "[" ):
    data = f"(b'{{\\"returned\\": [' + b'{part}' * (15000000 // {len(part)}) + b'0]}}')"
    judge(f"{FRAME}\\ndef f(*x): everywhere(frame{data})", function)
    judge(f"{FRAME}\\neverywhere(frame{data})", PROBLEM)
print(peak() - before)
"""


@pytest.mark.programs
def test_no_answer_takes_much_of_the_graders_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GRADER], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    print(f"the grader grew by {done.stdout.strip()} MiB")  # noqa: T201
    assert int(done.stdout) < 100


class TestFrames:
    @given(st.binary(max_size=200), st.one_of(st.none(), st.integers(0, 200)))
    def test_any_bytes_are_an_answer_or_none(self, data: bytes, size: int | None) -> None:
        """Hostile bytes, some behind the length of a frame."""
        if size is not None:
            data = size.to_bytes(8, "big") + data
        reading, writing = os.pipe()
        os.write(writing, data)
        os.close(writing)
        with os.fdopen(reading, "rb") as replies, os.fdopen(os.dup(reading), "wb") as requests:
            process: Any = SimpleNamespace(stdin=requests, stdout=replies, stderr=BytesIO())
            session = Session(process, 1 << 20)
            for _ in range(3):
                try:
                    assert isinstance(session.answer(time.monotonic() + 60), dict)
                except ProgramStoppedError:
                    return
