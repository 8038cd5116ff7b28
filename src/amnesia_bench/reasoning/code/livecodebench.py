"""LiveCodeBench: the prompt, the program in an answer, and verdicts on many programs at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from threading import Event

from amnesia_bench.errors import UserError
from amnesia_bench.reasoning.code.grading import grade
from amnesia_bench.reasoning.code.problems import CodeProblem
from amnesia_bench.reasoning.task import Attempt, Row, ScoringResult
from amnesia_bench.records.evaluation import Outcome, Verdict
from amnesia_bench.records.reasoning import Checker
from amnesia_bench.sandbox import Launcher, Limits, open_launcher

# LiveCodeBench's prompt for reasoning models (lcb_runner/prompts/code_generation.py at 28fef95).
_TASK = (
    "You will be given a question (problem specification) and will generate a correct Python "
    "program that matches the specification and passes all tests."
)
_WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose "
    "your code within delimiters."
)
_WITHOUT_STARTER = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly "
    "test on the sample inputs). Enclose your code within delimiters as follows."
)
_FENCE = "```"


def prompt(problem: CodeProblem) -> str:
    """Return the text of the one user message; there is no system message."""
    sentence = _WITH_STARTER if problem.starter_code else _WITHOUT_STARTER
    code = problem.starter_code or "# YOUR CODE HERE"
    return (
        f"{_TASK}\n\nQuestion: {problem.question}\n\n"
        f"{sentence}\n{_FENCE}python\n{code}\n{_FENCE}\n\n"
    )


def extract(text: str) -> str | None:
    """Return the program in what follows the thinking; None if there is none.

    It is what lies between the last two lines with a fence.
    """
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if _FENCE in line]
    if len(fences) < 2:
        return None
    return "\n".join(lines[fences[-2] + 1 : fences[-1]])


# The field of a row that a problem stands in.
PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True)
class ProgramScorer:
    """Judges the program in an answer by all tests of its problem.

    `launcher` None: a sandbox, tried and opened when there is something to judge. `workers` None:
    a program per core.
    """

    launcher: Launcher | None = None
    limits: Limits = field(default_factory=Limits)
    checker: Checker = Checker.LCB
    workers: int | None = None

    @property
    def settings(self) -> Mapping[str, str]:
        """What verdicts may depend on, for the record."""
        limits = self.limits
        settings = {
            "checker": self.checker.value,
            "seconds_per_test": f"{limits.seconds_per_test:g}",
            "time_limit": f"{limits.seconds_per_test:g} s of CPU time, "
            f"{limits.wall_seconds_per_test:g} s of wall-clock time",
        }
        return settings if self.launcher is None else {**self.launcher.settings, **settings}

    def __call__(self, rows: Sequence[Row], attempts: Sequence[Attempt]) -> ScoringResult:
        launcher = self.launcher or open_launcher()
        problems = [problem_of(row) for row in rows]
        verdicts = score_programs(
            problems,
            attempts,
            launcher,
            limits=self.limits,
            checker=self.checker,
            workers=self.workers,
        )
        return ScoringResult(verdicts=verdicts, votes=None)


def problem_of(row: Row) -> CodeProblem:
    """Return the problem in a row."""
    problem = row[PROBLEM]
    assert isinstance(problem, CodeProblem)
    return problem


def score_programs(
    problems: Sequence[CodeProblem],
    attempts: Iterable[Attempt],
    launcher: Launcher,
    *,
    limits: Limits | None = None,
    checker: Checker = Checker.LCB,
    workers: int | None = None,
) -> tuple[Verdict, ...]:
    """Return a verdict on each attempt, in the order of the keys.

    Args:
        problems: `doc` of a key is an index into them.
        attempts: in any order.
        launcher: of `sandbox.open_launcher`.
        limits: of LiveCodeBench when None.
        checker: how programs are run and judged.
        workers: programs at once; a program per core when None.

    Raises:
        UserError: a key names no problem, there are more workers than cores, or the tests of a
            problem cannot be read.
    """
    cores = len(os.sched_getaffinity(0))
    workers = cores if workers is None else workers
    if not 1 <= workers <= cores:
        raise UserError(
            f"workers={workers}: programs at once, on {cores} cores",
            hint="Ask for one program per core at most.",
        )
    answers = sorted(attempts, key=lambda attempt: attempt.key)
    for answer in answers:
        if not 0 <= answer.key.doc < len(problems):
            raise UserError(f"{answer.key}: there are {len(problems)} problems")
    # By problem: its tests, often a hundred megabytes, are decoded once and then let go.
    groups = [list(group) for _, group in groupby(answers, lambda a: (a.key.task, a.key.doc))]
    stopped = Event()

    def score_group(group: Sequence[Attempt]) -> list[Verdict]:
        problem = problems[group[0].key.doc]
        tests = problem.tests()
        verdicts = []
        for answer in group:
            if stopped.is_set():
                break
            code = None if answer.text is None else extract(answer.text)
            outcome, detail = Outcome.NO_ANSWER, None
            if code is not None:
                result = grade(code, problem, tests, launcher, limits or Limits(), checker)
                outcome, detail = result.outcome, result.detail
            verdicts.append(Verdict(key=answer.key, outcome=outcome, answer=code, detail=detail))
        return verdicts

    with ThreadPoolExecutor(workers) as pool:
        try:
            return tuple(verdict for group in pool.map(score_group, groups) for verdict in group)
        finally:
            stopped.set()  # Ctrl-C waits for the programs that run, not for all of them
