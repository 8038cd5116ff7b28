from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amnesia_bench.errors import MissingEnvironmentError
from amnesia_bench.recall.niah.words import WordPairs, needle_keys

WORDS = st.lists(st.text("ab-", min_size=1, max_size=4), min_size=1, max_size=8)


@given(adjectives=WORDS, nouns=WORDS)
def test_pairs_are_the_sorted_list_of_all_distinct_ones(
    adjectives: list[str], nouns: list[str]
) -> None:
    expected = sorted({f"{adjective}-{noun}" for adjective in adjectives for noun in nouns})
    pairs = WordPairs(adjectives, nouns)
    assert list(pairs) == expected
    assert pairs[-1] == expected[-1]
    assert pairs[1:3] == expected[1:3]


def test_a_choice_among_keys_draws_as_from_the_list_itself() -> None:
    adjectives, nouns = ["blue", "blue-eyed", "old"], ["day", "eyed-fox", "fox"]
    pairs = WordPairs(adjectives, nouns)
    listed = sorted({f"{adjective}-{noun}" for adjective in adjectives for noun in nouns})
    ours, theirs = random.Random(5), random.Random(5)
    assert [ours.choice(pairs) for _ in range(50)] == [theirs.choice(listed) for _ in range(50)]
    assert ours.getstate() == theirs.getstate()


def test_beyond_the_last_pair_there_is_none() -> None:
    with pytest.raises(IndexError):
        WordPairs(["a"], ["b"])[1]


def test_other_words_than_those_of_the_official_prompts_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import wonderwords

    class Fewer:
        def __init__(self, enhanced_prefixes: bool) -> None:
            self._categories = {"adjectives": ["old"], "nouns": ["fox"]}

    monkeypatch.setattr(wonderwords, "RandomWord", Fewer)
    needle_keys.cache_clear()
    with pytest.raises(MissingEnvironmentError, match=r"wonderwords==3\.0\.1"):
        needle_keys()
