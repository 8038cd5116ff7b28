from __future__ import annotations

import re

import pytest

from amnesia_bench.recall.niah.documents import Essays, Lines, shared_characters
from amnesia_bench.recall.niah.splicing import joined
from amnesia_bench.recall.niah.tasks import LINE, SINGLE_TASKS, prompt_pieces, surrounded
from amnesia_bench.records.niah import NiahDocument
from amnesia_bench.tokenizers.sentences import sentence_splitter
from tests.support.niah_texts import made_up_essay

TEXT = made_up_essay(1400)


def test_a_shorter_document_is_split_as_if_it_had_been_alone() -> None:
    split = sentence_splitter().split
    words = TEXT.split()
    essays = Essays(words, split)
    essays.text(len(words))  # what shorter ones are then taken from
    for units in (1, 2, 17, 1000, 5000, *range(12000, 12006)):
        sentences = split(" ".join(words[:units]))
        assert essays.text(units) == " ".join(sentences)
        assert essays.position(units, 0) == 0
        assert essays.position(units, 100) == len(essays.text(units))
        half = int(len(sentences) * 0.5)
        before = " ".join(sentences[:half])
        assert essays.position(units, 50) == (len(before) + 1 if half else 0)


def test_the_length_of_a_document_is_known_before_it_is_made() -> None:
    def after_every_stop(text: str) -> list[str]:  # also where no space follows
        return [part.strip() for part in re.findall(r"[^.]+\.?", text)]

    words = TEXT.replace(". ", ".").split()
    essays = Essays(words, after_every_stop)
    essays.text(len(words))
    for units in (10, 500, 3000, 9000):
        assert abs(essays.characters(units) - len(essays.text(units))) <= 3
    assert len(essays.text(9000)) - len(" ".join(words[:9000])) > 300


def test_only_the_end_of_a_shorter_document_is_split_again() -> None:
    asked = []

    def split(text: str) -> list[str]:
        asked.append(len(text))
        return sentence_splitter().split(text)

    essays = Essays(TEXT.split(), split)
    essays.text(14000)
    essays.text(13000)
    assert asked[1] < 6000 < asked[0]


def test_a_split_that_depends_on_what_went_before_is_made_in_full() -> None:
    def thirds(text: str) -> list[str]:
        words = text.split()
        return [" ".join(words[i : i + 3]) for i in range(0, len(words), 3)]

    def counted(text: str) -> list[str]:  # the further the longer
        words, made = text.split(), []
        while words:
            size = len(made) % 50 + 1
            made.append(" ".join(words[:size]))
            words = words[size:]
        return made

    for split in (thirds, counted):
        essays = Essays(TEXT.split(), split)
        essays.text(9000)
        expected = split(" ".join(TEXT.split()[:8000]))
        assert essays.text(8000) == " ".join(expected)
        assert essays.position(8000, 50) == len(" ".join(expected[: len(expected) // 2])) + 1


def test_lines_are_joined_by_breaks_and_needles_stand_before_one() -> None:
    lines = Lines()
    assert lines.text(3) == f"{LINE}\n{LINE}\n{LINE}"
    assert lines.text(3)[lines.position(3, 2) :] == LINE
    assert list(lines.places(3)) == [0, 1, 2]
    assert lines.depth_percent(4, 1) == 25
    assert (lines.increment(4095), lines.increment(4096)) == (5, 25)


@pytest.mark.parametrize(
    ("position", "essays", "expected"),
    [(0, True, " N "), (5, True, "N "), (9, True, " N "), (0, False, "N\n"), (5, False, "N\n")],
)
def test_a_needle_is_set_off_as_lm_eval_does(position: int, essays: bool, expected: str) -> None:
    assert surrounded("N", position, 9, essays=essays) == expected


def test_a_needle_in_the_tail_of_a_document_stands_there() -> None:
    document = NiahDocument(units=4, shared=4, tail="Xy. Zw.")
    task = SINGLE_TASKS["niah_single_2"]
    for position, context in (
        (0, " {} One Xy. Zw."),
        (4, "One {} Xy. Zw."),
        (8, "One Xy. {} Zw."),
        (11, "One Xy. Zw. {} "),
    ):
        text = joined("One Two", prompt_pieces(task, document, position, "k", "7"))
        needle = "One of the special magic numbers for k is: 7."
        assert text == task.head + context.format(needle) + task.question("k")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("", "a", 0), ("abc", "abc", 3), ("abc", "abd", 2), ("abc", "abcd", 3), ("x", "y", 0)],
)
def test_shared_characters_are_counted(one: str, other: str, expected: int) -> None:
    assert shared_characters(one, other) == expected
