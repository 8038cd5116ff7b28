"""LiveCodeBench: its problems, its prompt, and verdicts on many programs, a few at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from threading import Event

from amnesia_bench.errors import UserError
from amnesia_bench.evals.code.grading import grade
from amnesia_bench.evals.code.problems import Problem, load_problems, problems_identity
from amnesia_bench.evals.code.prompt import extract, prompt
from amnesia_bench.evals.sandbox import Launcher, Limits
from amnesia_bench.records.evaluation import Generation, Outcome, SampleKey, Verdict

__all__ = ["extract", "load_problems", "problems_identity", "prompt", "score"]


@dataclass(frozen=True)
class _Answer:
    key: SampleKey
    text: str


def score(
    problems: Sequence[Problem],
    generations: Iterable[Generation],
    launcher: Launcher,
    *,
    limits: Limits | None = None,
    workers: int | None = None,
) -> tuple[Verdict, ...]:
    """Return a verdict on each generation, in the order of the keys.

    Args:
        problems: `doc` of a key is an index into them.
        generations: may come from a stream; of each its key and text are kept.
        launcher: of `evals.sandbox.open_launcher`.
        limits: of LiveCodeBench when None.
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
            hint="More than a program per core would cost each other their time limit.",
        )
    answers = sorted((_Answer(g.key, g.text) for g in generations), key=lambda a: a.key)
    for answer in answers:
        if not 0 <= answer.key.doc < len(problems):
            raise UserError(f"{answer.key}: there are {len(problems)} problems")
    # By problem: its tests, often a hundred megabytes, are decoded once and then let go.
    groups = [list(group) for _, group in groupby(answers, lambda a: (a.key.task, a.key.doc))]
    stopped = Event()

    def score_group(group: Sequence[_Answer]) -> list[Verdict]:
        problem = problems[group[0].key.doc]
        tests = problem.tests()
        verdicts = []
        for answer in group:
            if stopped.is_set():
                break
            code = extract(answer.text)
            outcome, detail = Outcome.NO_ANSWER, None
            if code is not None:
                result = grade(code, problem, tests, launcher, limits or Limits())
                outcome, detail = result.outcome, result.detail
            verdicts.append(Verdict(key=answer.key, outcome=outcome, answer=code, detail=detail))
        return verdicts

    with ThreadPoolExecutor(workers) as pool:
        try:
            return tuple(verdict for group in pool.map(score_group, groups) for verdict in group)
        finally:
            stopped.set()  # Ctrl-C waits for the programs that run, not for all of them
