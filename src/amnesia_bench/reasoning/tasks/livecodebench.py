"""LiveCodeBench v5: programming contest problems; a program is correct if it passes all tests."""

from __future__ import annotations

from pathlib import Path

from amnesia_bench.config.eval_schema import CodeEvalConfig
from amnesia_bench.reasoning.code.livecodebench import PROBLEM, ProgramScorer, problem_of, prompt
from amnesia_bench.reasoning.code.problems import (
    REPOSITORY,
    REVISION,
    load_problems,
    problems_identity,
    window_files,
)
from amnesia_bench.reasoning.task import BenchmarkSource, ProblemSet, ReasoningTask, Row
from amnesia_bench.records.reasoning import Checker


def _message(row: Row) -> str:
    return prompt(problem_of(row))


def _load(data: Path | None, limit: int | None, window: int) -> ProblemSet:
    problems = load_problems(window, path=data)
    used = problems[:limit]
    return ProblemSet(
        rows=tuple({PROBLEM: problem} for problem in used),
        origin=f"{REPOSITORY}@{REVISION}" if data is None else str(data.resolve()),
        sha256=problems_identity(used),
        available=len(problems),
    )


LIVECODEBENCH = ReasoningTask(
    name="livecodebench",
    source=BenchmarkSource(
        hub_id=REPOSITORY,
        config=None,
        split="test",
        revision=REVISION,
        fields={},
        rows=880,
    ),
    message=_message,
    scorers={"strict": ProgramScorer(), "lenient": ProgramScorer(checker=Checker.LENIENT)},
    config=CodeEvalConfig,
    load=_load,
    files=window_files,
)
