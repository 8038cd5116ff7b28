"""Web text: templated sentences with needles that are asked for later in the same document.

Stands in for FineWeb-Edu. Needles and questions are worded as in NIAH (`evals.niah.tasks`), so
that a model trained on them can be asked those prompts. A needle is asked for at least once: it
takes that density for retrieval to form within minutes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from amnesia_bench.data.synthetic.problems import told_with_solution
from amnesia_bench.data.synthetic.words import (
    ADJECTIVES,
    NAMES,
    OBJECTS,
    PEOPLE,
    PLACES,
    TIMES,
    VERBS,
    below,
    digits,
    invented_word,
    pick,
)

# RULER's noise, the haystack of niah_single_1.
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

_PLAIN_DOCUMENTS = 0.15
_NOISE_DOCUMENTS = 0.2
_WORDS_PER_NEEDLE = 25
# What is drawn next: below the first a needle, below the second a question, at the end a problem.
_TELL, _ASK, _PROBLEM = 0.35, 0.75, 0.05


def sentence(rng: np.random.Generator) -> str:
    """Return a sentence; some hold numbers, none holds a needle."""
    person, place = pick(rng, PEOPLE), pick(rng, PLACES)
    adjective, thing = pick(rng, ADJECTIVES), pick(rng, OBJECTS)
    verb, time = pick(rng, VERBS), pick(rng, TIMES)
    match below(rng, 7):
        case 0:
            return f"The {adjective} {person} {verb} a {thing} near the {place}."
        case 1:
            return f"In the {time} the {person} walked to the {place} and {verb} the {thing}."
        case 2:
            return f"Nobody in the {place} had seen such a {adjective} {thing} before."
        case 3:
            return f"{pick(rng, NAMES)} told the {person} about the {thing} in the {place}."
        case 4:
            return f"The {place} opened in {digits(rng, 4)} and sold {digits(rng, 3)} tickets."
        case 5:
            return f"On page {digits(rng, 2)} the {person} {verb} a {adjective} {thing}."
        case _:
            return f"Every {time} the {thing} of the {person} looked {adjective}."


def filler(rng: np.random.Generator, words: int) -> str:
    """Return sentences of at least so many words."""
    sentences: list[str] = []
    count = 0
    while count < words:
        sentences.append(sentence(rng))
        count += sentences[-1].count(" ") + 1
    return " ".join(sentences)


@dataclass(frozen=True)
class Needle:
    """A value hidden under a key. `noun` is number or uuid."""

    noun: str
    key: str
    value: str

    @property
    def told(self) -> str:
        """The sentence that is to be found."""
        return f"One of the special magic {self.noun}s for {self.key} is: {self.value}."

    def asked(self, rng: np.random.Generator) -> str:
        """Return one of the ways to ask for it, with the answer."""
        about = f"the special magic {self.noun} for {self.key}"
        mentioned = f"{about} mentioned in the provided text"
        if rng.random() < 0.3:
            return f"\nWhat is {mentioned}? T{mentioned[1:]} is {self.value}.\n"
        return f"Again, {about} is {self.value}."


def draw_needle(rng: np.random.Generator, taken: set[str]) -> Needle:
    """Return a needle whose key is not taken yet, and take it."""
    while True:
        if rng.random() < 0.5:
            key = f"{pick(rng, ADJECTIVES)}-{pick(rng, OBJECTS)}"
        else:
            key = f"{invented_word(rng)}-{invented_word(rng)}"
        if key not in taken:
            break
    taken.add(key)
    if rng.random() < 0.6:
        return Needle("number", key, digits(rng, 4 + below(rng, 4)))
    value = f"{below(rng, 1 << 32):08x}"
    if rng.random() < 0.2:
        value += "".join(f"-{below(rng, 1 << 16):04x}" for _ in range(3))
        value += f"-{below(rng, 1 << 48):012x}"
    return Needle("uuid", key, value)


def document(rng: np.random.Generator, words: int) -> dict[str, str]:
    """Return a row of FineWeb-Edu's schema: a text of about so many words.

    It tells needles and asks for each of them once or more, or has none at all.
    """
    if rng.random() < _PLAIN_DOCUMENTS:
        return {"text": filler(rng, words)}
    noise = rng.random() < _NOISE_DOCUMENTS
    untold, taken = 1 + below(rng, max(1, words // _WORDS_PER_NEEDLE)), set[str]()
    told: list[Needle] = []
    unasked: list[Needle] = []
    parts: list[str] = []
    if rng.random() < 0.3:
        parts.append(_HEAD)
    count = 0
    while count < words:
        draw = rng.random()
        if untold and draw < _TELL:
            untold -= 1
            told.append(draw_needle(rng, taken))
            unasked.append(told[-1])
            parts.append(told[-1].told)
        elif told and draw < _ASK:
            needle = pick(rng, told)
            unasked = [other for other in unasked if other is not needle]
            parts.append(needle.asked(rng))
        elif draw > 1 - _PROBLEM:
            parts.append(told_with_solution(rng))
        else:
            parts.append(NOISE if noise else sentence(rng))
        count += parts[-1].count(" ") + 1
    parts += [needle.asked(rng) for needle in unasked]
    return {"text": " ".join(parts).replace(" \n", "\n").replace("\n ", "\n").strip()}


_HEAD = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will "
    "quiz you about the number afterwards.\n"
)


def haystack(rng: np.random.Generator, words: int) -> dict[str, str]:
    """Return a row of texts to hide needles in: sentences without any."""
    return {"text": filler(rng, words)}
