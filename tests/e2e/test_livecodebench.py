"""Whole programs through loader, extraction, sandbox and checker."""

from __future__ import annotations

import pytest

from amnesia_bench.evals.code.livecodebench import score
from amnesia_bench.evals.code.problems import load_problems
from amnesia_bench.evals.sandbox import Launcher, Limits
from amnesia_bench.records.evaluation import Outcome, Verdict
from tests.lcb import INDEX, ROWS, attempt, read_cases, write_rows

CASES = read_cases()
# Short for those that reach it; a slow machine must not make a wrong verdict of the others.
SHORT = Limits(seconds_per_test=1.5, wall_factor=3.0)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory, sandbox: Launcher) -> list[Verdict]:
    problems = load_problems(369, path=write_rows(tmp_path_factory.mktemp("lcb") / "p", ROWS))
    answers = [attempt(i, case.code, INDEX[case.problem]) for i, case in enumerate(CASES)]
    late = [a for a, case in zip(answers, CASES, strict=True) if case.outcome is Outcome.TIME_LIMIT]
    found = score(problems, late, sandbox, limits=SHORT)
    found += score(problems, [a for a in answers if a not in late], sandbox)
    return sorted(found, key=lambda verdict: verdict.key.repeat)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{c.problem}: {c.name}" for c in CASES])
def test_verdict_is_that_of_the_official_checker(number: int, verdicts: list[Verdict]) -> None:
    case = CASES[number]
    verdict = verdicts[number]
    assert (verdict.outcome, verdict.detail) == (case.outcome, case.detail)
    assert verdict.answer == case.code
