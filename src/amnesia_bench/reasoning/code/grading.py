"""One program against the tests of its problem: run inside the sandbox, judged out here."""

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
    """How a program did; `detail` says which test it failed and how, None if it passed all."""

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
    """Run a program on tests up to the first one that it fails.

    `tests` are those of the problem, decoded once for all its programs.

    Raises:
        UserError: an expected output cannot be read.
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

    def _ask(self, session: Session, request: object, most: int) -> Mapping[str, Any]:
        return session.ask(
            request, self._deadline(), cpu_seconds=self.limits.seconds_per_test, most=most
        )

    def _deadline(self) -> float:
        return time.monotonic() + self.limits.wall_seconds_per_test

    def _most(self, test: ProgramTest) -> int:
        """Return how many bytes an answer may have: judging takes 25 times as much memory."""
        return min(self.limits.output_bytes, _SPARE_BYTES + _BYTES_PER_EXPECTED * len(test.output))


class _DriverGrader(_Grader):
    """One process answers all tests, as in LiveCodeBench's checker."""

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
                    answer = self._ask(session, test.input, self._most(test))
                    if fault := _judge(answer, test, problem, self.checker):
                        return Grade(Outcome.WRONG, f"{where}: {fault}")
            except ProgramStoppedError as error:
                return _stopped(error, where)
        return Grade(Outcome.CORRECT, None)


class _ScriptGrader(_Grader):
    """A process per test, whose end is the answer: plain Python."""

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
        most = self._most(test)
        limits = replace(self.limits, file_bytes=most)
        total = limits.total_seconds(1)
        with self.launcher.started(limits, total, script_input=test.input) as session:
            job = {"code": code, "function": None}
            if fault := _fault(self._ask(session, job, _SPARE_BYTES), "loaded"):
                return fault
            answer = session.script_end(self._deadline(), self.limits.seconds_per_test)
            printed = session.output(most)
        if len(printed) == most:
            return Stop.OUTPUT_LIMIT.value
        if fault := _fault(answer, "status"):
            return fault
        if answer["status"] != 0:
            return f"{Stop.ENDED.value} (exit status {answer['status']})"
        return _judge({"printed": printed.decode("utf-8", "replace")}, test, problem, self.checker)


# Of an answer: some for spaces, empty lines and frames, and as much again as is expected many
# times over, for other ways to write the same.
_SPARE_BYTES = 1 << 20
_BYTES_PER_EXPECTED = 16


def _stopped(error: ProgramStoppedError, where: str) -> Grade:
    late = error.stop is Stop.TIME_LIMIT
    return Grade(Outcome.TIME_LIMIT if late else Outcome.WRONG, f"{where}: {error}")


def _judge(
    answer: Mapping[str, Any], test: ProgramTest, problem: CodeProblem, checker: Checker
) -> str | None:
    """Return what is wrong with an answer, None if nothing is."""
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


# The driver's words for what is no exception of the program's own.
_NAMED = {"MemoryError": "memory limit", "OutputLimit": Stop.OUTPUT_LIMIT.value}


def _fault(answer: Mapping[str, Any], wanted: str) -> str | None:
    if wanted in answer:
        return None
    name = answer.get("error")
    if not isinstance(name, str) or not name.isidentifier():
        return Stop.MALFORMED.value
    return _NAMED.get(name, f"runtime error: {name[:80]}")
