"""Web text: templated sentences with needles that are asked for later in the same document.

Stands in for FineWeb-Edu. Needles and questions are worded as in NIAH (`recall.niah.tasks`), so
that a model trained on them can be asked those prompts, or in short. A needle is asked for soon
after it was told, and often again: it takes that density for retrieval to form within minutes.
Before that a model must have learned to copy, from `copies`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from amnesia_bench.data.synthetic.problems import draw_problem
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
    hexadecimal,
    invented_word,
    pick,
    shuffled,
)

# RULER's noise, the haystack of niah_single_1.
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

_HEAD = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will "
    "quiz you about the number afterwards.\n"
)
_WORDS = (*ADJECTIVES, *PEOPLE, *PLACES, *OBJECTS, *VERBS, *TIMES, *NAMES)
_PLAIN_DOCUMENTS = 0.1
_NOISE_DOCUMENTS = 0.25
_SHORT = 0.7  # the share of needles and of questions in a few words
_UUID_GROUPS = (8, 4, 4, 4, 12)  # digits


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

    def told(self, rng: np.random.Generator) -> str:
        """Return the sentence that is to be found."""
        if rng.random() < _SHORT:
            return f"{self.key} is: {self.value}."
        return f"One of the special magic {self.noun}s for {self.key} is: {self.value}."

    def asked(self, rng: np.random.Generator) -> str:
        """Return one of the ways to ask for it, with the answer."""
        if rng.random() < _SHORT:
            return f"{self.key} is {self.value}."
        asked = f"the special magic {self.noun} for {self.key} mentioned in the provided text"
        return f"\nWhat is {asked}? T{asked[1:]} is {self.value}.\n"


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
    if rng.random() < 0.5:
        return Needle("number", key, digits(rng, 4 + below(rng, 4)))
    groups = _UUID_GROUPS if rng.random() < 0.5 else _UUID_GROUPS[:1]
    return Needle("uuid", key, "-".join(hexadecimal(rng, count) for count in groups))


def varied_run(rng: np.random.Generator) -> str:
    """Return what is to be copied: hexadecimal digits, often with dashes, or a list of events."""
    draw = rng.random()
    if draw < 0.4:
        return hexadecimal(rng, 2 * (3 + below(rng, 10)))
    if draw < 0.7:
        return "-".join(hexadecimal(rng, 1 + below(rng, 10)) for _ in range(2 + below(rng, 4)))
    events = draw_problem(rng, test=False).events
    return " ".join(f"{event.verb} {event.amount}" for event in events)


def said_again(rng: np.random.Generator, run: str, most: int) -> str:
    """Return a run two to `most` times, with a few words before each.

    How often it comes and what stands between differs, or a model would learn the distance.
    """
    parts: list[str] = []
    for time in range(2 + below(rng, most - 1)):
        parts += [pick(rng, _WORDS) for _ in range(below(rng, 6) if time else 1)]
        parts.append(f"{run}.")
    return " ".join(parts)


def copies(rng: np.random.Generator) -> dict[str, str]:
    """Return a row of FineWeb-Edu's schema that teaches to copy pairs of digits, nothing else.

    In every third row some end in a dash, which makes another token of a pair: those are rare
    later on, and models went wrong at the dashes of uuids (docs/LOG.md).
    """
    pairs = [hexadecimal(rng, 2) for _ in range(3 + below(rng, 8))]
    if below(rng, 3) == 0:
        pairs[:-1] = [pair + "-" if below(rng, 2) == 0 else pair for pair in pairs[:-1]]
    return {"text": said_again(rng, "".join(pairs), 4)}


def varied_copies(rng: np.random.Generator) -> dict[str, str]:
    """Return a row of FineWeb-Edu's schema that teaches to copy all kinds of runs."""
    return {"text": said_again(rng, varied_run(rng), 4)}


def document(rng: np.random.Generator, words: int) -> dict[str, str]:
    """Return a row of FineWeb-Edu's schema: a text of about so many words.

    Groups of needles, each asked for behind its group and perhaps again later; or none at all.
    """
    if rng.random() < _PLAIN_DOCUMENTS:
        return {"text": filler(rng, words)}
    noise = rng.random() < _NOISE_DOCUMENTS
    taken: set[str] = set()
    earlier: list[Needle] = []
    parts = [_HEAD] if rng.random() < 0.3 else []
    count = 0
    while count < words:
        group = [draw_needle(rng, taken) for _ in range(1 + below(rng, 3) // 2)]
        added: list[str] = []
        for needle in group:
            added += [needle.told(rng), *_between(rng, noise, 1)]
        added += _between(rng, noise, 3)
        for needle in shuffled(rng, group):
            added += [needle.asked(rng), *_between(rng, noise, 1)]
        if earlier and rng.random() < 0.5:
            added.append(pick(rng, earlier).asked(rng))
        if rng.random() < 0.3:
            added.append(said_again(rng, varied_run(rng), 2))
        earlier += group
        parts += added
        count += sum(part.count(" ") + 1 for part in added)
    return {"text": " ".join(parts).replace(" \n", "\n").replace("\n ", "\n").strip()}


def _between(rng: np.random.Generator, noise: bool, most: int) -> list[str]:
    """Return up to so many sentences; none as often as any number."""
    return [NOISE if noise else sentence(rng) for _ in range(below(rng, most + 1))]


def haystack(rng: np.random.Generator, words: int) -> dict[str, str]:
    """Return a row of texts to hide needles in: sentences without any."""
    return {"text": filler(rng, words)}
