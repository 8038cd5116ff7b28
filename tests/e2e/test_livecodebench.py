"""Whole programs through loader, extraction, sandbox and checker."""

from __future__ import annotations

import pytest

from amnesia_bench.reasoning.code.livecodebench import score_programs
from amnesia_bench.reasoning.code.problems import load_problems
from amnesia_bench.records.evaluation import Outcome, Verdict
from amnesia_bench.records.reasoning import Checker
from amnesia_bench.sandbox import Launcher, Limits
from tests.support.lcb import INDEX, ROWS, attempt, read_cases, read_two_verdicts, write_rows

pytestmark = pytest.mark.programs

CASES = read_cases()
TWO = read_two_verdicts()
# Short for those that reach it; a slow machine must not make a wrong verdict of the others.
SHORT = Limits(seconds_per_test=1.5, wall_factor=3.0)


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher) -> list[Verdict]:
    problems = load_problems(369, path=write_rows(tmp_path_factory.mktemp("lcb") / "p", ROWS))
    answers = [attempt(i, case.code, INDEX[case.problem]) for i, case in enumerate(CASES)]
    late = [a for a, case in zip(answers, CASES, strict=True) if case.outcome is Outcome.TIME_LIMIT]
    found = score_programs(problems, late, launcher, limits=SHORT)
    found += score_programs(problems, [a for a in answers if a not in late], launcher)
    return sorted(found, key=lambda verdict: verdict.key.repeat)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[f"{c.problem}: {c.name}" for c in CASES])
def test_verdict_is_that_of_the_official_checker(number: int, verdicts: list[Verdict]) -> None:
    case = CASES[number]
    verdict = verdicts[number]
    assert (verdict.outcome, verdict.detail) == (case.outcome, case.detail)
    assert verdict.answer == case.code


@pytest.fixture(scope="module", params=list(Checker), ids=lambda checker: checker.value)
def by_checker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, launcher: Launcher
) -> tuple[Checker, list[Verdict]]:
    problems = load_problems(369, path=write_rows(tmp_path_factory.mktemp("lcb") / "p", ROWS))
    answers = [attempt(i, case.code, INDEX[case.problem]) for i, case in enumerate(TWO)]
    found = score_programs(problems, answers, launcher, limits=SHORT, checker=request.param)
    return request.param, sorted(found, key=lambda verdict: verdict.key.repeat)


@pytest.mark.parametrize("number", range(len(TWO)), ids=[f"{c.problem}: {c.name}" for c in TWO])
def test_each_checker_gives_its_verdict(
    number: int, by_checker: tuple[Checker, list[Verdict]]
) -> None:
    checker, verdicts = by_checker
    case = TWO[number]
    expected = case.lcb if checker is Checker.LCB else case.lenient
    assert verdicts[number].outcome is expected, verdicts[number].detail
