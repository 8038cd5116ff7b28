"""One program against the tests of its problem: run inside the sandbox, judged out here."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amnesia_bench.errors import UserError
from amnesia_bench.evals.code.comparison import printed_difference, returned_equals
from amnesia_bench.evals.code.problems import Problem, ProblemKind, ProgramTest
from amnesia_bench.evals.sandbox import (
    Launcher,
    Limits,
    ProgramStoppedError,
    SandboxError,
    Session,
    Stop,
)
from amnesia_bench.records.evaluation import Outcome


@dataclass(frozen=True)
class Grade:
    """How a program did; `detail` says which test it failed and how, None if it passed all."""

    outcome: Outcome
    detail: str | None


def grade(
    code: str,
    problem: Problem,
    tests: Sequence[ProgramTest],
    launcher: Launcher,
    limits: Limits,
) -> Grade:
    """Run a program on tests up to the first one that it fails.

    `tests` are those of the problem, decoded once for all its programs.

    Raises:
        UserError: an expected output cannot be read.
    """
    total = limits.total_seconds(len(tests))
    end = time.monotonic() + total
    try:
        with launcher.started(limits, total) as session:
            grader = _Grader(session, limits, end)
            return grader.grade(code, problem, tests)
    except SandboxError as error:
        return Grade(Outcome.UNSCORED, f"no sandbox: {error}")


@dataclass(frozen=True)
class _Grader:
    session: Session
    limits: Limits
    end: float

    def grade(self, code: str, problem: Problem, tests: Sequence[ProgramTest]) -> Grade:
        where = "loading"
        try:
            answer = self._ask({"code": code, "function": problem.function})
            if fault := _fault(answer, "loaded"):
                return Grade(Outcome.WRONG, f"{where}: {fault}")
            for number, test in enumerate(tests, start=1):
                where = f"test {number} of {len(tests)}"
                if fault := _judge(self._ask(test.input), test, problem):
                    return Grade(Outcome.WRONG, f"{where}: {fault}")
        except ProgramStoppedError as error:
            late = error.stop is Stop.TIME_LIMIT
            return Grade(Outcome.TIME_LIMIT if late else Outcome.WRONG, f"{where}: {error}")
        return Grade(Outcome.CORRECT, None)

    def _ask(self, request: object) -> Mapping[str, Any]:
        deadline = time.monotonic() + self.limits.seconds_per_test
        return self.session.ask(request, min(deadline, self.end))


def _judge(answer: Mapping[str, Any], test: ProgramTest, problem: Problem) -> str | None:
    """Return what is wrong with an answer, None if nothing is."""
    if problem.kind is ProblemKind.STDIN:
        if fault := _fault(answer, "printed"):
            return fault
        if not isinstance(printed := answer["printed"], str):
            return Stop.MALFORMED.value
        difference = printed_difference(printed, test.output)
        return difference and f"wrong answer: {difference}"
    if fault := _fault(answer, "returned"):
        return fault
    try:
        expected = json.loads(test.output)
    except ValueError as error:
        raise UserError(f"{problem.source}: {problem.name}: an output is not JSON") from error
    return None if returned_equals(answer["returned"], expected) else "wrong answer"


# The driver's words for what is no exception of the program's own.
_NAMED = {"MemoryError": "memory limit", "OutputLimit": Stop.OUTPUT_LIMIT.value}


def _fault(answer: Mapping[str, Any], wanted: str) -> str | None:
    if wanted in answer:
        return None
    name = answer.get("error")
    if not isinstance(name, str) or not name.isidentifier():
        return Stop.MALFORMED.value
    return _NAMED.get(name, f"runtime error: {name[:80]}")
