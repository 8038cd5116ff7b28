"""Word problems: every answer right by another calculation, and none trained on that is asked."""

import re
from typing import Any

from amnesia_bench.reasoning.tasks.mathematics import GSM8K, gsm8k_gold
from amnesia_bench.tokenizers.chat_format import STEP_BY_STEP
from tests.support.synthetic import rows_of

RECEIPT = r"[0-9a-f]{4}(?:-[0-9a-f]{4})?"
EVENT = re.compile(rf"\bon (\w+day) ({RECEIPT}) (\w+) (\d)\b(?!:)")
STEP = re.compile(rf"on (\w+day) ({RECEIPT}) (\w+) (\d): (\d)([+-])(\d)=(\d)")
PROGRAM = re.compile(rf"x\d = x\d ([+-]) (\d) # {RECEIPT}")
GAINS = ("bought", "found", "won", "received")


Event = tuple[str, str, str, int]


def events_of(text: str) -> list[Event]:
    found = EVENT.findall(text)
    return [(day, receipt, verb, int(amount)) for day, receipt, verb, amount in found]


def signed(events: list[Event]) -> list[int]:
    return [amount if verb in GAINS else -amount for _, _, verb, amount in events]


def check_chain(chain: list[tuple[str, ...]], events: list[Event], answer: int) -> None:
    """Hold a chain's steps against the events of its problem."""
    restated = [(day, receipt, verb, int(amount)) for day, receipt, verb, amount, *_ in chain]
    assert restated == events
    assert len({day for day, *_ in events}) == len({event[2] for event in events}) == len(events)
    count = 0
    for step, change in zip(chain, signed(events), strict=True):
        *_, amount, before, sign, again, after = step
        assert int(before) == count
        assert amount == again
        assert sign == ("+" if change > 0 else "-")
        count = (count + change) % 10
        assert int(after) == count
    assert answer == sum(signed(events)) % 10


def test_chains_restate_every_event_and_end_in_the_right_answer() -> None:
    for row in rows_of("word_problems", 500):
        thought = re.fullmatch(r"<think>\n(.*)\n</think>\n\n\\boxed\{(\d)\}", row["response"], re.S)
        assert thought is not None
        check_chain(STEP.findall(thought[1]), events_of(row["question"]), int(thought[2]))
        assert row["question"].endswith(f"\n{STEP_BY_STEP}")


def test_a_chain_names_nobody_and_a_problem_one_person() -> None:
    names = re.compile(r"\b(Mira|Tom|Anna|Paul|Nora|Erik|Lena|Omar)\b")
    for row in rows_of("word_problems", 200):
        assert len(set(names.findall(row["question"]))) == 1
        assert not names.search(row["response"])


def test_evaluation_problems_are_gsm8k_rows_with_right_answers() -> None:
    for row in rows_of("test_problems", 500):
        assert set(row) == set(GSM8K.source.fields)
        check_chain(STEP.findall(row["answer"]), events_of(row["question"]), int(gsm8k_gold(row)))


def test_programs_print_what_python_prints() -> None:
    for row in rows_of("programs", 200):
        asked, answered = (turn["value"] for turn in row["conversations"])
        lines = asked.split("\n")[1:-1]
        scope: dict[str, Any] = {}
        exec("\n".join(lines), scope)
        assert answered.endswith(f"\\boxed{{{scope[f'x{len(lines) - 1}'] % 10}}}")
        assert len(PROGRAM.findall(asked)) == answered.count(" = ")


def test_equations_and_problems_in_prose_are_right() -> None:
    solved = re.compile(r"[A-Z][\w ]+? (on Monday [^.]*)\. So ([^.]*), done (\d)\.")
    step = re.compile(rf"on (\w+day) ({RECEIPT}) (\d)([+-])(\d)=(\d)")
    equation = re.compile(r"\b(\d)([+-])(\d)=(\d)\.")
    found = 0
    for row in rows_of("mathematics", 200):
        problems = list(solved.finditer(row["content"]))
        for problem in problems:
            events = events_of(problem[1])
            steps = [one.groups() for part in problem[2].split(", ") if (one := step.match(part))]
            chain = [
                (day, receipt, verb, amount, before, sign, amount, after)
                for (day, receipt, before, sign, amount, after), (_, _, verb, _) in zip(
                    steps, events, strict=True
                )
            ]
            check_chain(chain, events, int(problem[3]))
        for a, sign, b, c in equation.findall(solved.sub("", row["content"])):
            assert int(c) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) % 10
            found += 1
        found += len(problems)
    assert found > 800


def test_one_conversation_of_four_has_a_chain_and_every_answer_is_right() -> None:
    chains = 0
    for row in rows_of("conversations", 400):
        asked, answered = (message["content"] for message in row["messages"])
        events = events_of(asked)
        form = r"(?:<think>\n(.*)\n</think>\n\n)?\\boxed\{(\d)\}"
        answer = re.fullmatch(form, answered, re.DOTALL)
        assert answer is not None
        assert int(answer[2]) == sum(signed(events)) % 10
        if answer[1] is not None:
            check_chain(STEP.findall(answer[1]), events, int(answer[2]))
            chains += 1
    assert 70 < chains < 130


def test_no_problem_is_both_trained_on_and_evaluated_whatever_the_seeds() -> None:
    def keys(texts: list[str]) -> set[tuple[tuple[str, int], ...]]:
        return {tuple((verb, amount) for *_, verb, amount in events_of(text)) for text in texts}

    trained = set()
    for seed in (0, 1, 2):
        trained |= keys([row["question"] for row in rows_of("word_problems", 1500, seed=seed)])
        told = "".join(row["content"] for row in rows_of("mathematics", 300, seed=seed))
        told += "".join(row["text"] for row in rows_of("prose", 300, seed=seed))
        trained |= keys(re.findall(r"(on Monday [^.]*)\. So", told))
        conversations = rows_of("conversations", 300, seed=seed)
        trained |= keys([row["messages"][0]["content"] for row in conversations])
    asked = set()
    for seed in (0, 1, 7):
        asked |= keys([row["question"] for row in rows_of("test_problems", 1500, seed=seed)])
    assert min(len(trained), len(asked)) > 1500
    assert not trained & asked
