"""The vocabulary of the synthetic texts, and functions for random choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")

ADJECTIVES = (
    "rusty", "young", "quiet", "bright", "heavy", "small", "tall", "warm", "cold", "busy",
    "dusty", "gentle", "golden", "modest", "narrow", "plain", "rapid", "silent", "tidy", "wild",
)  # fmt: skip
PEOPLE = (
    "baker", "teacher", "farmer", "sailor", "doctor", "painter", "miller", "guard", "singer",
    "writer", "driver", "tailor",
)  # fmt: skip
PLACES = (
    "harbor", "market", "garden", "station", "library", "bridge", "village", "forest", "castle",
    "river", "museum", "valley",
)  # fmt: skip
OBJECTS = (
    "lantern", "basket", "letter", "mirror", "hammer", "candle", "blanket", "kettle", "violin",
    "ladder", "pencil", "bottle", "window", "table", "barrel", "compass",
)  # fmt: skip
VERBS = (
    "carried", "painted", "repaired", "dropped", "borrowed", "cleaned", "noticed", "hid", "lifted",
    "sketched",
)  # fmt: skip
TIMES = ("morning", "evening", "summer", "winter", "spring", "night")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday")
NAMES = ("Mira", "Tom", "Anna", "Paul", "Nora", "Erik", "Lena", "Omar")
GOODS = ("apples", "coins", "books", "stones", "shells", "stamps", "marbles", "tickets")

_CONSONANTS = "bcdfghjklmnprstvwz"
_VOWELS = "aeiou"


def below(rng: np.random.Generator, end: int) -> int:
    """Return a random integer in [0, end), where `end` is far below 2**53."""
    # For a single number, `rng.integers` is several times slower.
    return int(rng.random() * end)


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """Return a uniformly random item."""
    return items[below(rng, len(items))]


def digits(rng: np.random.Generator, count: int) -> str:
    """Return a random number of `count` decimal digits as text, without a leading 0."""
    return str(10 ** (count - 1) + below(rng, 9 * 10 ** (count - 1)))


def hexadecimal(rng: np.random.Generator, count: int) -> str:
    """Return `count` independent random hexadecimal digits."""
    return "".join(pick(rng, "0123456789abcdef") for _ in range(count))


def shuffled(rng: np.random.Generator, items: Sequence[Item]) -> list[Item]:
    """Return the items in random order."""
    return [items[int(i)] for i in rng.permutation(len(items))]


def invented_word(rng: np.random.Generator) -> str:
    """Return an invented word of two or three syllables."""
    syllables = 2 + below(rng, 2)
    return "".join(pick(rng, _CONSONANTS) + pick(rng, _VOWELS) for _ in range(syllables))
