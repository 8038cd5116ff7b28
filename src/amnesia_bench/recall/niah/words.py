"""The keys of the needles: a lazy sequence of all adjective-noun pairs.

lm-eval builds a sorted list of all six million pairs (10 s, 1 GB) and draws from it with
`random.choice`, which needs only the length of the list and one item.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from typing import overload

from amnesia_bench.errors import MissingEnvironmentError

WORDS_SHA256 = "a1ea21873c07854c364bf7a93924b3dacd8409e853dbf546a306cc13d69040d4"
ALL_WORDS_SHA256 = "e38c2301ebc71a787f9bb015b91d31e5cd2fb97366e578786091fa8b6fa6cc4b"


class WordPairs(Sequence[str]):
    """The sorted sequence of all distinct `adjective-noun` pairs; each pair is built on access."""

    def __init__(self, adjectives: Iterable[str], nouns: Iterable[str]) -> None:
        self._nouns = sorted(set(nouns))
        self._blocks: list[list[str]] = []
        for prefix in sorted({f"{adjective}-" for adjective in adjectives}):
            # Sorting by prefix sorts the pairs, unless one prefix starts with another:
            # `blue-eyed-day` is between `blue-day` and `blue-fox`. Such prefixes share a block.
            if self._blocks and prefix.startswith(self._blocks[-1][0]):
                self._blocks[-1].append(prefix)
            else:
                self._blocks.append([prefix])
        self._shared = {
            block[0]: sorted({prefix + noun for prefix in block for noun in self._nouns})
            for block in self._blocks
            if len(block) > 1
        }
        self._ends = list(accumulate(len(self._pairs_of(block)) for block in self._blocks))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        number = bisect_right(self._ends, index)
        block = self._blocks[number]
        within = index - (self._ends[number - 1] if number else 0)
        pair = self._pairs_of(block)[within]
        return pair if len(block) > 1 else block[0] + pair

    def _pairs_of(self, block: list[str]) -> list[str]:
        """Return the pairs of a block; if it has only one prefix, return the nouns instead."""
        return self._shared[block[0]] if len(block) > 1 else self._nouns


@cache
def needle_keys() -> WordPairs:
    """Return the sequence of keys from which lm-eval draws.

    Raises:
        MissingEnvironmentError: wonderwords is not installed, or its words differ from those of
            the version with which the official prompts are built.
    """
    categories = _categories()
    adjectives, nouns = categories["adjectives"], categories["nouns"]
    if words_sha256(adjectives, nouns) != WORDS_SHA256:
        raise _other_words()
    return WordPairs(adjectives, nouns)


@cache
def all_words() -> tuple[str, ...]:
    """Return the sorted nouns, adjectives and verbs from which lm-eval draws for ruler_cwe.

    Raises:
        MissingEnvironmentError: see `needle_keys`.
    """
    categories = _categories()
    words = {word for kind in ("noun", "adjective", "verb") for word in categories[kind]}
    if words_sha256(sorted(words), ()) != ALL_WORDS_SHA256:
        raise _other_words()
    return tuple(sorted(words))


_HINT = 'pip install "wonderwords==3.0.1"'


def _categories() -> Mapping[str, Sequence[str]]:
    try:
        import wonderwords
    except ImportError as error:
        raise MissingEnvironmentError(
            "niah build needs wonderwords for the needles' keys", hint=_HINT
        ) from error
    # The prefix trees, which take longer to build than all else here, are not needed.
    random_word = wonderwords.RandomWord(enhanced_prefixes=False)
    categories: Mapping[str, Sequence[str]] = random_word._categories
    return categories


def _other_words() -> MissingEnvironmentError:
    return MissingEnvironmentError(
        "the words of this wonderwords differ from version 3.0.1: keys and all later draws "
        "would differ from those of lm-eval 0.4.13",
        hint=_HINT,
    )


def words_sha256(adjectives: Iterable[str], nouns: Iterable[str]) -> str:
    """Return the SHA-256 of the two word lists, in hex; the order of the words matters."""
    text = "\n".join(adjectives) + "\n\n" + "\n".join(nouns)
    return hashlib.sha256(text.encode()).hexdigest()
