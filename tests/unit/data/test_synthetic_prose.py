"""Prose: what is asked for was told before, exactly once, and the answer is what was told."""

import re

from amnesia_bench.data.synthetic.prose import NOISE
from amnesia_bench.recall.niah.tasks import LINE, SINGLE_TASKS
from tests.support.synthetic import rows_of

VALUE = r"([0-9a-f-]+)\."
TOLD = re.compile(r"(?:One of the special magic (\w+)s for )?(\S+) is: " + VALUE)
ASKED = re.compile(
    r"(?:T\w+ special magic (\w+) for )?(\S+)(?: mentioned in the provided text)? is " + VALUE
)

TEXTS = [row["text"] for row in rows_of("prose", 400, words=160)]


def test_every_question_has_one_right_answer_which_was_told_before() -> None:
    questions = 0
    for text in TEXTS:
        needles = {}
        for told in TOLD.finditer(text):
            noun, key, value = told.groups()
            assert key not in needles
            needles[key] = (noun, value, told.end())
        asked = list(ASKED.finditer(text))
        for question in asked:
            noun, value, end = needles[question[2]]
            assert question[3] == value
            assert None in (question[1], noun) or question[1] == noun
            assert question.start() > end
        assert {question[2] for question in asked} == set(needles)
        questions += len(asked)
    assert questions > 2 * len(TEXTS)


def test_a_value_is_told_as_a_number_8_hex_digits_or_a_uuid() -> None:
    told = [told for text in TEXTS for told in TOLD.finditer(text)]
    values = [(needle[1], needle[3]) for needle in told if needle[1]]
    forms = {
        "number": re.compile(r"[1-9]\d{3,6}"),
        "uuid": re.compile(r"[0-9a-f]{8}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    }
    assert all(forms[noun].fullmatch(value) for noun, value in values)
    assert {len(value) for noun, value in values if noun == "uuid"} == {8, 36}


def test_some_documents_hold_no_needle_and_some_are_noise() -> None:
    plain = sum("special magic" not in text for text in TEXTS)
    noisy = sum(text.count(NOISE) > 2 for text in TEXTS)
    assert 0.05 < plain / len(TEXTS) < 0.25
    assert 0.05 < noisy / len(TEXTS) < 0.25


def test_needles_and_questions_are_worded_as_in_niah() -> None:
    assert NOISE == LINE
    whole = "\n".join(TEXTS)
    for task in SINGLE_TASKS.values():
        assert TOLD.fullmatch(task.needle("a-key", "123"))
    number = SINGLE_TASKS["niah_single_2"]
    assert number.head in whole
    keys = {told[2] for told in TOLD.finditer(whole) if told[1] == "number"}
    assert any(f"{key} is " in whole and f"{number.gen_prefix(key)} " not in whole for key in keys)
    assert any(f"{number.question(k)} {number.gen_prefix(k)} " in whole for k in keys)


def test_pairs_to_copy_come_two_to_four_times_and_nothing_else_does() -> None:
    times, dashed = set(), 0
    for row in rows_of("copies", 200):
        runs = re.findall(r"(?<!\S)((?:[0-9a-f]{2}-?)+[0-9a-f]{2})\.", row["text"])
        assert len(set(runs)) == 1
        assert len(runs[0].replace("-", "")) in range(6, 22, 2)
        times.add(len(runs))
        dashed += "-" in runs[0]
    assert times == {2, 3, 4}
    assert 40 < dashed < 90


def test_varied_copies_are_of_every_form_word_for_word() -> None:
    times, forms = set(), dict.fromkeys(("pairs", "dashed", "events"), 0)
    for row in rows_of("varied_copies", 300):
        said = [part.split() for part in row["text"].removesuffix(".").split(". ")]
        last = {part[-1] for part in said}
        assert len(last) == 1
        times.add(len(said))
        run = last.pop()
        forms["dashed" if "-" in run else "events" if len(run) == 1 else "pairs"] += 1
    assert times == {2, 3, 4}
    assert min(forms.values()) > 10


def test_a_haystack_holds_no_needle_and_ends_in_full_sentences() -> None:
    for row in rows_of("haystack", 20, words=300):
        assert "magic" not in row["text"]
        assert row["text"].endswith(".")
