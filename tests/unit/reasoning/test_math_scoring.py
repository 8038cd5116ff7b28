"""Mathematical answers: known verdicts, gold answers against themselves, hostile LaTeX, votes."""

import json
import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnesia_bench.config.eval_schema import Think
from amnesia_bench.reasoning.math.equality import Equality, glance
from amnesia_bench.reasoning.math.pool import ALGEBRA, ComparisonPool, Failure
from amnesia_bench.reasoning.math.reading import read
from amnesia_bench.reasoning.math.scorer import MathScorer, last_boxed, last_number
from amnesia_bench.reasoning.math.worker import READY
from amnesia_bench.reasoning.task import Attempt, ScoringResult
from amnesia_bench.reasoning.tasks import TASKS
from amnesia_bench.reasoning.tasks.mathematics import gsm8k_gold
from amnesia_bench.records.evaluation import Outcome, SampleKey
from amnesia_bench.tokenizers.chat_format import without_thinking
from tests.support.shared import shared_path

pytest.importorskip("math_verify")

CASES = json.loads((Path(__file__).parents[2] / "data" / "math_cases.json").read_text())
THINK = Think(open="<think>", close="</think>")


def gold_of(row: Any) -> str:
    return str(row["gold"])


def judge(scorer: MathScorer, pairs: list[tuple[str, str | None]]) -> ScoringResult:
    """Judge one text per problem."""
    attempts = [
        Attempt(key=SampleKey(task="t", doc=i, repeat=0), text=text)
        for i, (_, text) in enumerate(pairs)
    ]
    return scorer([{"gold": gold} for gold, _ in pairs], attempts)


# -- known verdicts --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["strict", "flexible"])
def judged(request: pytest.FixtureRequest) -> tuple[str, ScoringResult]:
    unboxed = {"strict": None, "flexible": "any"}[request.param]
    texts = [
        without_thinking(case["text"], THINK, opened=case.get("thinking_opened", False))
        for case in CASES
    ]
    pairs = list(zip([case["gold"] for case in CASES], texts, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amnesia_bench.reasoning.math.pool.ANSWER_SECONDS", 1.0)
        return request.param, judge(MathScorer(gold=gold_of, unboxed=unboxed), pairs)


@pytest.mark.parametrize("i", range(len(CASES)), ids=[case["text"][-40:] for case in CASES])
def test_a_known_verdict(judged: tuple[str, ScoringResult], i: int) -> None:
    scorer, found = judged
    verdict = found.verdicts[i]
    assert verdict.outcome.value == CASES[i][scorer], (CASES[i], verdict)
    assert (verdict.answer is None) == (verdict.outcome is Outcome.NO_ANSWER)


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in shared_path("data", name).read_text().splitlines()]


def test_gsm8k_gold_is_right_against_itself_and_a_perturbed_number_is_wrong() -> None:
    rows = rows_of("gsm8k_test.jsonl")
    assert len(rows) == 1319
    golds = [gsm8k_gold(row) for row in rows]
    for scorer in TASKS["gsm8k"].scorers.values():
        for change, outcome in ((0, Outcome.CORRECT), (1, Outcome.WRONG)):
            attempts = [
                Attempt(
                    key=SampleKey(task="gsm8k", doc=i, repeat=0),
                    text=f"so it is $\\boxed{{{int(gold) + change:,}}}$.",
                )
                for i, gold in enumerate(golds)
            ]
            verdicts = scorer(rows, attempts).verdicts
            assert [v.outcome for v in verdicts] == [outcome] * 1319
    # The reasoning of the data set itself, which ends in its number.
    attempts = [
        Attempt(key=SampleKey(task="gsm8k", doc=i, repeat=0), text=row["answer"])
        for i, row in enumerate(rows)
    ]
    flexible = TASKS["gsm8k"].scorers["flexible"](rows, attempts).verdicts
    assert {v.outcome for v in flexible} == {Outcome.CORRECT}
    strict = TASKS["gsm8k"].scorers["strict"](rows, attempts).verdicts
    assert {v.outcome for v in strict} == {Outcome.NO_ANSWER}


def test_aime24_gold_is_right_against_itself_and_its_neighbour_is_wrong() -> None:
    rows = rows_of("aime24_test.jsonl")
    for change, outcome in ((0, Outcome.CORRECT), (1, Outcome.WRONG)):
        attempts = [
            Attempt(
                key=SampleKey(task="aime24", doc=i, repeat=0),
                text=f"\\boxed{{{int(row['answer']) + change:03d}}}",
            )
            for i, row in enumerate(rows)
        ]
        verdicts = TASKS["aime24"].scorers["strict"](rows, attempts).verdicts
        assert [v.outcome for v in verdicts] == [outcome] * 30


def test_minerva_math_gold_is_right_against_itself() -> None:
    golds = [last_boxed(row["solution"]) for row in rows_of("minerva_math_test.jsonl")]
    assert len(golds) == 272
    pairs = [(gold or "", f"Therefore \\[\\boxed{{ {gold} }}\\]") for gold in golds]
    verdicts = judge(MathScorer(gold=gold_of), pairs).verdicts
    wrong = [(i, golds[i]) for i, v in enumerate(verdicts) if v.outcome is not Outcome.CORRECT]
    assert wrong == []


# -- extraction ------------------------------------------------------------------------------


def test_extraction_takes_one_pass_over_hostile_text() -> None:
    # In quadratic time this would take hours.
    assert last_boxed("\\boxed{" * 200_000) is None
    assert last_boxed("{" * 200_000 + "\\boxed{1}") == "1"
    assert last_boxed("}" * 200_000 + "\\boxed{1}" + "}" * 200_000) == "1"


def test_the_empty_set_is_no_empty_box() -> None:
    assert last_boxed("\\boxed{5} or \\boxed{\\{\\}}") == "\\{\\}"
    assert last_boxed("\\boxed{5} or \\boxed{\\emptyset}") == "\\emptyset"


@given(st.text(alphabet="abc{}\\ 1", max_size=20))
def test_a_box_around_balanced_text_gives_it_back(inside: str) -> None:
    depth, balanced, escaped = 0, True, False
    for character in inside:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            depth += {"{": 1, "}": -1}.get(character, 0)
            balanced = balanced and depth >= 0
    if balanced and depth == 0 and not escaped and "\\\\" not in inside:
        # Without a letter, a digit or a brace of a set it repeats the request.
        holds = set(inside) & set("abc1") or "\\{" in inside or "\\}" in inside
        expected = inside.strip() if holds else None
        assert last_boxed(f"so \\boxed{{{inside}}} is it") == expected


@pytest.mark.parametrize(
    ("text", "number_found"),
    [
        ("#### 1,234", "1234"),
        ("between 3 and -4.5.", "-4.5"),
        ("1,2,3", "3"),
        ("no number", None),
        ("it costs $1,234.50.", "1234.50"),
        (".5", ".5"),
    ],
)
def test_the_last_number_of_a_text(text: str, number_found: str | None) -> None:
    assert last_number(text) == number_found


# -- comparison ------------------------------------------------------------------------------


@given(st.integers(-(10**12), 10**12))
def test_integers_are_equal_however_they_are_written(value: int) -> None:
    for form in (f"{value:,}", f"{value}.0", f"${value}$", f"{{{value}}}", f" {value} \\%"):
        assert glance(str(value), form) is True
        assert glance(str(value + 1), form) is not True


@given(st.fractions(min_value=-1000, max_value=1000, max_denominator=1000))
def test_a_plain_number_is_read_exactly(value: Fraction) -> None:
    decimal = Fraction(round(value * 1000), 1000)
    assert read(f"{float(decimal):.3f}").number == decimal


@pytest.mark.parametrize("text", ["", "x", "1/2", "1,23", "1.2.3", "--1", "1e9999", "1,2", "\\pi"])
def test_what_is_no_plain_number(text: str) -> None:
    assert read(text).number is None


def test_one_half_is_parsed_with_this_version_of_antlr() -> None:
    with ComparisonPool() as pool:
        assert pool.run([("verify", "0.5", "\\frac12"), ("verify", "2", "\\frac12")]) == [
            True,
            False,
        ]


def test_what_differs_in_its_numbers_is_different_to_algebra_too() -> None:
    golds = list(dict.fromkeys(case["gold"] for case in CASES))
    boxed = [
        last_boxed(case["text"])
        for case in CASES
        if case["strict"] != "time_limit" and "{{{" not in case["text"]
    ]
    answers = [*golds, *(answer for answer in dict.fromkeys(boxed) if answer is not None)]
    pairs = [(first, second) for first in golds for second in answers]
    with ComparisonPool() as pool:
        equality = Equality(pool, answers)
        by_numbers = [
            pair for pair in pairs if glance(*pair) is None and equality.known(*pair) is False
        ]
        some = by_numbers[:: len(by_numbers) // 150]
        assert len(some) >= 150
        found = dict(zip(some, equality.ask("same", some), strict=True))
    assert [pair for pair, equal in found.items() if equal is not False] == []


# -- the pool --------------------------------------------------------------------------------

HOSTILE = (
    "10^{10^{10^{10}}}",
    "9" * 1500 + "^{" + "9" * 300 + "}",
    "\\sqrt{" * 300 + "2" + "}" * 300,
)


def test_hostile_answers_end_in_time_and_leave_their_neighbours_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("amnesia_bench.reasoning.math.pool.ANSWER_SECONDS", 1.0)
    pairs = [("\\frac{1}{2}", f"\\boxed{{ {i}/{2 * i} }}") for i in range(1, 41)]
    for i, hostile in enumerate(HOSTILE):
        pairs.insert(7 * i, ("1", f"\\boxed{{{hostile}}}"))
    verdicts = judge(MathScorer(gold=gold_of), pairs).verdicts
    positions = [7 * i for i in range(len(HOSTILE))]
    for i, verdict in enumerate(verdicts):
        if i in positions:
            assert verdict.outcome in (Outcome.TIME_LIMIT, Outcome.WRONG)
        else:
            assert verdict.outcome is Outcome.CORRECT
    assert verdicts[0].outcome is Outcome.TIME_LIMIT
    assert verdicts[0].detail == "judging it ran out of time"


def test_a_process_that_dies_costs_its_own_answer_only() -> None:
    requests = [("verify", "0.5", "\\frac12")] * 30
    with ComparisonPool() as pool:
        assert pool.run(requests[:1]) == [True]
        (first,) = pool._workers
        os.kill(first.process.pid, signal.SIGKILL)
        replies = pool.run(requests)
    assert replies.count(Failure.DIED) <= 1
    assert [reply for reply in replies if reply is not Failure.DIED] == [True] * (
        len(replies) - replies.count(Failure.DIED)
    )


def test_workers_end_with_their_parent() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", ALGEBRA, "5"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == READY
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    process.stdout.close()


def test_the_time_limit_holds_where_the_parent_ignores_its_signal() -> None:
    command = ["sh", "-c", f"trap '' PROF; exec {sys.executable} -m {ALGEBRA} 0.2"]
    request = json.dumps(["numbers", "9^{9^{9^{9}}} + 1"]).encode() + b"\n"
    done = subprocess.run(command, input=request, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGPROF


def test_an_answer_longer_than_any_real_one_is_not_compared() -> None:
    (verdict,) = judge(MathScorer(gold=gold_of), [("1", "\\boxed{" + "x+" * 2000 + "1}")]).verdicts
    assert verdict.outcome is Outcome.WRONG
    assert verdict.detail == "longer than 2000 characters"


# -- votes -----------------------------------------------------------------------------------


def test_equal_answers_vote_together_and_missing_ones_do_not_vote() -> None:
    texts = ["\\boxed{0.5}", "?", "\\boxed{\\frac12}", "\\boxed{2}", "\\boxed{1/2}", None]
    attempts = [
        Attempt(key=SampleKey(task="t", doc=doc, repeat=repeat), text=text)
        for doc in range(2)
        for repeat, text in enumerate(texts)
    ]
    judged = MathScorer(gold=gold_of)([{"gold": "\\frac{1}{2}"}, {"gold": "2"}], attempts)
    assert judged.votes == (0, None, 0, 1, 0, None) * 2
    assert [v.outcome.value for v in judged.verdicts[:6]] == [
        "correct",
        "no_answer",
        "correct",
        "wrong",
        "correct",
        "no_answer",
    ]


def test_answers_that_cannot_be_compared_vote_by_their_letters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("amnesia_bench.reasoning.math.pool.ANSWER_SECONDS", 1.0)
    texts = [f"\\boxed{{{HOSTILE[0]}}}", "\\boxed{1}", f"\\boxed{{{HOSTILE[0]}}}"]
    attempts = [
        Attempt(key=SampleKey(task="t", doc=0, repeat=repeat), text=text)
        for repeat, text in enumerate(texts)
    ]
    judged = MathScorer(gold=gold_of)([{"gold": "1"}], attempts)
    assert judged.votes == (0, 1, 0)
