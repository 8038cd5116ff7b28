"""IFEval by lm-eval's own checkers: deterministic, offline, thinking left out."""

import random

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.reasoning.task import Attempt
from amnesia_bench.reasoning.tasks import TASKS
from amnesia_bench.records.evaluation import Outcome, SampleKey, Verdict

pytest.importorskip("lm_eval")

ROW = {
    "key": 1,
    "prompt": "Write two sentences in lower case.",
    "instruction_id_list": [
        "length_constraints:number_sentences",
        "change_case:english_lowercase",
        "keywords:existence",
    ],
    # None as in the hub's parquet, where all arguments have all keys.
    "kwargs": [
        {"relation": "at least", "num_sentences": 2, "keywords": None},
        {"relation": None, "num_sentences": None, "keywords": None},
        {"relation": None, "num_sentences": None, "keywords": ["river"]},
    ],
}


def verdict(text: str | None, row: dict[str, object] = ROW) -> Verdict:
    attempt = Attempt(key=SampleKey(task="ifeval", doc=0, repeat=0), text=text)
    return TASKS["ifeval"].scorers["strict"]([row], [attempt]).verdicts[0]


@pytest.mark.parametrize(
    ("text", "outcome", "detail"),
    [
        ("the river is long. it is also wide.", Outcome.CORRECT, None),
        ("the river is long and wide.", Outcome.WRONG, "length_constraints:number_sentences"),
        ("The River is long. It is wide.", Outcome.WRONG, "change_case:english_lowercase"),
        ("the lake is long. it is wide.", Outcome.WRONG, "keywords:existence"),
        (" ", Outcome.NO_ANSWER, None),
        (None, Outcome.NO_ANSWER, None),
    ],
)
def test_every_instruction_must_be_followed(
    text: str | None, outcome: Outcome, detail: str | None
) -> None:
    found = verdict(text)
    assert found.outcome is outcome
    assert found.detail == (f"not followed: {detail}" if detail else None)


def test_a_missing_argument_is_not_drawn_anew_each_time() -> None:
    row = ROW | {
        "instruction_id_list": ["length_constraints:number_words"],
        "kwargs": [{"relation": "at least"}],
    }
    text = " ".join(["word"] * 300)
    random.seed(5)
    state = random.getstate()
    outcomes = {verdict(text, row).outcome for _ in range(20)}
    assert len(outcomes) == 1
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"instruction_id_list": ["no:such"], "kwargs": [{}]}, "unknown instruction or argument"),
        ({"kwargs": [{}]}, "has 3 instructions and arguments for 1"),
        (
            {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"words": 3}]},
            "unknown instruction or argument",
        ),
    ],
)
def test_a_row_that_is_not_of_ifeval_is_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        verdict("some text", ROW | change)


def one(instruction: str, **arguments: object) -> dict[str, object]:
    return {"key": 1, "prompt": "?", "instruction_id_list": [instruction], "kwargs": [arguments]}


@pytest.mark.parametrize(
    ("letter", "text", "outcome"),
    [
        ("#", "sunny day #a #b #c #d", Outcome.CORRECT),
        ("#", "yay, my city is very yummy", Outcome.WRONG),
        ("!", "wow!!!!", Outcome.CORRECT),
        ("y", "yay, my city is very yummy", Outcome.CORRECT),
        ("Y", "sunny day #a #b #c #d", Outcome.WRONG),
    ],
)
def test_a_sign_that_is_no_letter_is_counted_as_the_instruction_says(
    letter: str, text: str, outcome: Outcome
) -> None:
    row = one("keywords:letter_frequency", let_relation="at least", letter=letter, let_frequency=4)
    assert verdict(text, row).outcome is outcome


def test_an_answer_that_a_checker_fails_on_is_wrong_and_not_printed(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    json_row = one("detectable_format:json_format")
    language_row = one("language:response_language", language="de")
    assert verdict("[" * 5000, json_row).outcome is Outcome.WRONG
    assert verdict('{"a": 1}', json_row).outcome is Outcome.CORRECT
    # lm-eval counts text without a language as right, and logs all of it.
    assert verdict("12345 67890", language_row).outcome is Outcome.CORRECT
    assert "12345" not in "".join(capfd.readouterr()) + caplog.text


def test_a_long_answer_is_judged_in_bounded_time_and_costs_its_own_verdict_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("amnesia_bench.reasoning.math.pool.ANSWER_SECONDS", 1.0)
    row = one("detectable_content:number_placeholders", num_placeholders=1)
    texts = ["[" * 100_000, "[name] " + "word " * 20_000, "word " * 20_000, "[name]"]
    attempts = [
        Attempt(key=SampleKey(task="ifeval", doc=i, repeat=0), text=text)
        for i, text in enumerate(texts)
    ]
    found = TASKS["ifeval"].scorers["strict"]([row] * len(texts), attempts).verdicts
    assert [v.outcome for v in found] == [
        Outcome.TIME_LIMIT,
        Outcome.CORRECT,
        Outcome.WRONG,
        Outcome.CORRECT,
    ]
    with pytest.raises(UserError, match="unknown instruction or argument"):
        verdict("word " * 5000, one("no:such"))
