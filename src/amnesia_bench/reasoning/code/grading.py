"""Grade one program: run it in the sandbox on its problem's tests, judge its output outside."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from amnesia_bench.errors import UserError
from amnesia_bench.reasoning.code.comparison import (
    PRINTED_TOLERANCE,
    RETURNED_TOLERANCE,
    printed_difference,
    returned_equals,
)
from amnesia_bench.reasoning.code.problems import CodeProblem, ProblemKind, ProgramTest
from amnesia_bench.records.evaluation import Outcome
from amnesia_bench.records.reasoning import Checker
from amnesia_bench.sandbox import (
    Launcher,
    Limits,
    ProgramStoppedError,
    SandboxError,
    Session,
    Stop,
)


@dataclass(frozen=True)
class Grade:
    """The outcome of a program; `detail` names the failed test and the reason, if there is one."""

    outcome: Outcome
    detail: str | None


def grade(
    code: str,
    problem: CodeProblem,
    tests: Sequence[ProgramTest],
    launcher: Launcher,
    limits: Limits,
    checker: Checker = Checker.LCB,
) -> Grade:
    """Run a program on the tests of its problem, and stop at the first test that it fails.

    `tests` is an argument so that the caller decodes it only once for all programs of a problem.

    Raises:
        UserError: an expected output is not JSON.
    """
    script = checker is Checker.LENIENT and problem.kind is ProblemKind.STDIN
    kind = _ScriptGrader if script else _DriverGrader
    try:
        return kind(launcher, limits, checker).grade(code, problem, tests)
    except SandboxError as error:
        return Grade(Outcome.UNSCORED, f"no sandbox: {error}")


@dataclass(frozen=True)
class _Grader:
    launcher: Launcher
    limits: Limits
    checker: Checker

    def _ask(self, session: Session, request: object, max_bytes: int) -> Mapping[str, Any]:
        return session.ask(
            request, self._deadline(), cpu_seconds=self.limits.seconds_per_test, max_bytes=max_bytes
        )

    def _deadline(self) -> float:
        return time.monotonic() + self.limits.wall_seconds_per_test

    def _max_bytes(self, test: ProgramTest) -> int:
        """Return the maximum size of one answer in bytes.

        It is bounded because judging needs 25 times as much memory as the answer.
        """
        return min(self.limits.output_bytes, _SPARE_BYTES + _BYTES_PER_EXPECTED * len(test.output))


class _DriverGrader(_Grader):
    """Runs all tests in one driver process, as LiveCodeBench's checker does."""

    def grade(self, code: str, problem: CodeProblem, tests: Sequence[ProgramTest]) -> Grade:
        lenient = self.checker is Checker.LENIENT
        job = {"code": code, "function": problem.function, "lenient": lenient}
        where = "loading"
        with self.launcher.started(self.limits, self.limits.total_seconds(len(tests))) as session:
            try:
                answer = self._ask(session, job, _SPARE_BYTES)
                if fault := _fault(answer, "loaded"):
                    return Grade(Outcome.WRONG, f"{where}: {fault}")
                for number, test in enumerate(tests, start=1):
                    where = f"test {number} of {len(tests)}"
                    answer = self._ask(session, test.input, self._max_bytes(test))
                    if fault := _judge(answer, test, problem, self.checker):
                        return Grade(Outcome.WRONG, f"{where}: {fault}")
            except ProgramStoppedError as error:
                return _stopped(error, where)
        return Grade(Outcome.CORRECT, None)


class _ScriptGrader(_Grader):
    """Runs each test in its own Python process, judged by exit status and printed output."""

    def grade(self, code: str, problem: CodeProblem, tests: Sequence[ProgramTest]) -> Grade:
        for number, test in enumerate(tests, start=1):
            where = f"test {number} of {len(tests)}"
            try:
                if fault := self._run(code, problem, test):
                    return Grade(Outcome.WRONG, f"{where}: {fault}")
            except ProgramStoppedError as error:
                return _stopped(error, where)
        return Grade(Outcome.CORRECT, None)

    def _run(self, code: str, problem: CodeProblem, test: ProgramTest) -> str | None:
        max_bytes = self._max_bytes(test)
        limits = replace(self.limits, file_bytes=max_bytes)
        total = limits.total_seconds(1)
        with self.launcher.started(limits, total, script_input=test.input) as session:
            job = {"code": code, "function": None}
            if fault := _fault(self._ask(session, job, _SPARE_BYTES), "loaded"):
                return fault
            answer = session.script_end(self._deadline(), self.limits.seconds_per_test)
            printed = session.output(max_bytes)
        if len(printed) == max_bytes:
            return Stop.OUTPUT_LIMIT.value
        if fault := _fault(answer, "status"):
            return fault
        if answer["status"] != 0:
            return f"{Stop.ENDED.value} (exit status {answer['status']})"
        return _judge({"printed": printed.decode("utf-8", "replace")}, test, problem, self.checker)


# Maximum size of an answer: a constant that allows for spaces, empty lines and frames, plus a
# multiple of the expected output's length, since correct output can be written in several ways.
_SPARE_BYTES = 1 << 20
_BYTES_PER_EXPECTED = 16


def _stopped(error: ProgramStoppedError, where: str) -> Grade:
    late = error.stop is Stop.TIME_LIMIT
    return Grade(Outcome.TIME_LIMIT if late else Outcome.WRONG, f"{where}: {error}")


def _judge(
    answer: Mapping[str, Any], test: ProgramTest, problem: CodeProblem, checker: Checker
) -> str | None:
    """Return what is wrong with an answer, or None if it is correct."""
    lenient = checker is Checker.LENIENT
    if problem.kind is ProblemKind.STDIN:
        if fault := _fault(answer, "printed"):
            return fault
        if not isinstance(printed := answer["printed"], str):
            return Stop.MALFORMED.value
        tolerance = PRINTED_TOLERANCE if lenient else None
        difference = printed_difference(printed, test.output, tolerance)
        return difference and f"wrong answer: {difference}"
    if fault := _fault(answer, "returned"):
        return fault
    try:
        expected = json.loads(test.output)
    except ValueError as error:
        raise UserError(f"{problem.source}: {problem.name}: an output is not JSON") from error
    tolerance = RETURNED_TOLERANCE if lenient else None
    return None if returned_equals(answer["returned"], expected, tolerance) else "wrong answer"


# Error names by which the driver reports that a program exceeded a limit.
_LIMIT_FAULTS = {"MemoryError": "memory limit", "OutputLimit": Stop.OUTPUT_LIMIT.value}


def _fault(answer: Mapping[str, Any], field: str) -> str | None:
    if field in answer:
        return None
    name = answer.get("error")
    if not isinstance(name, str) or not name.isidentifier():
        return Stop.MALFORMED.value
    return _LIMIT_FAULTS.get(name, f"runtime error: {name[:80]}")
