"""LiveCodeBench: build prompts, extract programs from answers, and judge many programs."""

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
    """Return the user message for a problem; the prompt has no system message."""
    sentence = _WITH_STARTER if problem.starter_code else _WITHOUT_STARTER
    code = problem.starter_code or "# YOUR CODE HERE"
    return (
        f"{_TASK}\n\nQuestion: {problem.question}\n\n"
        f"{sentence}\n{_FENCE}python\n{code}\n{_FENCE}\n\n"
    )


def extract(text: str) -> str | None:
    """Return the program in an answer, or None if there is none.

    The program is the text between the last two lines that contain a code fence.

    Args:
        text: the answer without its thinking.
    """
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if _FENCE in line]
    if len(fences) < 2:
        return None
    return "\n".join(lines[fences[-2] + 1 : fences[-1]])


# The name of the row field that contains the `CodeProblem`.
PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True)
class ProgramScorer:
    """Judges the program in an answer by all tests of its problem.

    If `launcher` is None, scoring starts by testing and opening a sandbox. If `workers` is None,
    one program per core runs at a time.
    """

    launcher: Launcher | None = None
    limits: Limits = field(default_factory=Limits)
    checker: Checker = Checker.LCB
    workers: int | None = None

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings that verdicts may depend on."""
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
    """Return the `CodeProblem` that a row contains."""
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
    """Return a verdict on each attempt, sorted by key.

    Args:
        problems: the problems; the `doc` of a key is an index into this sequence.
        attempts: the answers, in any order.
        launcher: the result of `sandbox.open_launcher`.
        limits: the limits of each program; None for LiveCodeBench's limits.
        checker: the rules by which programs are run and judged.
        workers: number of programs to run in parallel; None for one per core.

    Raises:
        UserError: a key has no problem, there are more workers than cores, or the tests of a
            problem cannot be read.
    """
    cores = len(os.sched_getaffinity(0))
    workers = cores if workers is None else workers
    if not 1 <= workers <= cores:
        raise UserError(
            f"workers={workers}: must be from 1 to {cores}, the number of cores",
            hint=f"--workers {cores} runs one program per core.",
        )
    answers = sorted(attempts, key=lambda attempt: attempt.key)
    for answer in answers:
        if not 0 <= answer.key.doc < len(problems):
            raise UserError(f"{answer.key}: doc is out of range for {len(problems)} problems")
    # One group per problem, so that its tests (often a hundred megabytes) are decoded only once and
    # freed after the group.
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
            stopped.set()  # after Ctrl-C, only programs that are already running are waited for
