"""Web text: templated sentences with needles, and questions about them in the same document.

It stands in for FineWeb-Edu. Needles and questions have the wording of NIAH (`recall.niah.tasks`)
or a short form, so a model trained on them can answer NIAH prompts. A question follows soon after
its needle, often with a second one later: retrieval needs that density to form within minutes of
training. Before that, a model must learn to copy, from `copies`.
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

# The noise sentences of RULER, which are the haystack of niah_single_1.
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

_HEAD = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will "
    "quiz you about the number afterwards.\n"
)
_WORDS = (*ADJECTIVES, *PEOPLE, *PLACES, *OBJECTS, *VERBS, *TIMES, *NAMES)
_PLAIN_DOCUMENTS = 0.1
_NOISE_DOCUMENTS = 0.25
_SHORT = 0.7  # share of needles and of questions in the short form
_UUID_GROUPS = (8, 4, 4, 4, 12)  # hex digits per group


def sentence(rng: np.random.Generator) -> str:
    """Return a sentence, perhaps with numbers, but without a needle."""
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
    """Return sentences with at least `words` words in total."""
    sentences: list[str] = []
    count = 0
    while count < words:
        sentences.append(sentence(rng))
        count += sentences[-1].count(" ") + 1
    return " ".join(sentences)


@dataclass(frozen=True)
class Needle:
    """A value with the key that it is asked for by. `noun` is number or uuid."""

    noun: str
    key: str
    value: str

    def statement(self, rng: np.random.Generator) -> str:
        """Return the sentence that states the value."""
        if rng.random() < _SHORT:
            return f"{self.key} is: {self.value}."
        return f"One of the special magic {self.noun}s for {self.key} is: {self.value}."

    def question(self, rng: np.random.Generator) -> str:
        """Return a question for the value, in one of two forms, with the answer."""
        if rng.random() < _SHORT:
            return f"{self.key} is {self.value}."
        subject = f"the special magic {self.noun} for {self.key} mentioned in the provided text"
        return f"\nWhat is {subject}? T{subject[1:]} is {self.value}.\n"


def draw_needle(rng: np.random.Generator, used_keys: set[str]) -> Needle:
    """Return a needle with an unused key, and add the key to `used_keys`."""
    while True:
        if rng.random() < 0.5:
            key = f"{pick(rng, ADJECTIVES)}-{pick(rng, OBJECTS)}"
        else:
            key = f"{invented_word(rng)}-{invented_word(rng)}"
        if key not in used_keys:
            break
    used_keys.add(key)
    if rng.random() < 0.5:
        return Needle("number", key, digits(rng, 4 + below(rng, 4)))
    groups = _UUID_GROUPS if rng.random() < 0.5 else _UUID_GROUPS[:1]
    return Needle("uuid", key, "-".join(hexadecimal(rng, count) for count in groups))


def varied_run(rng: np.random.Generator) -> str:
    """Return a run to copy: hexadecimal digits, often with dashes, or a list of events."""
    draw = rng.random()
    if draw < 0.4:
        return hexadecimal(rng, 2 * (3 + below(rng, 10)))
    if draw < 0.7:
        return "-".join(hexadecimal(rng, 1 + below(rng, 10)) for _ in range(2 + below(rng, 4)))
    events = draw_problem(rng, test=False).events
    return " ".join(f"{event.verb} {event.amount}" for event in events)


def repeated_run(rng: np.random.Generator, run: str, most: int) -> str:
    """Return a run repeated two to `most` times, with a few words before each repetition.

    The number of repetitions and the words vary, since a model would otherwise learn the distance.
    """
    parts: list[str] = []
    for time in range(2 + below(rng, most - 1)):
        parts += [pick(rng, _WORDS) for _ in range(below(rng, 6) if time else 1)]
        parts.append(f"{run}.")
    return " ".join(parts)


def copies(rng: np.random.Generator) -> dict[str, str]:
    """Return a row of FineWeb-Edu's schema that teaches to copy pairs of hex digits.

    In every third row, some pairs end in a dash, which makes them different tokens. Later data
    rarely contain these, and models failed at the dashes of uuids (docs/LOG.md).
    """
    pairs = [hexadecimal(rng, 2) for _ in range(3 + below(rng, 8))]
    if below(rng, 3) == 0:
        pairs[:-1] = [pair + "-" if below(rng, 2) == 0 else pair for pair in pairs[:-1]]
    return {"text": repeated_run(rng, "".join(pairs), 4)}


def varied_copies(rng: np.random.Generator) -> dict[str, str]:
    """Return a row of FineWeb-Edu's schema that teaches to copy all kinds of runs."""
    return {"text": repeated_run(rng, varied_run(rng), 4)}


def document(rng: np.random.Generator, words: int) -> dict[str, str]:
    """Return a row of FineWeb-Edu's schema: a text of about `words` words.

    The text has groups of needles, each followed by questions for the group and perhaps a repeated
    question later; or it has no needles.
    """
    if rng.random() < _PLAIN_DOCUMENTS:
        return {"text": filler(rng, words)}
    noise = rng.random() < _NOISE_DOCUMENTS
    used_keys: set[str] = set()
    earlier: list[Needle] = []
    parts = [_HEAD] if rng.random() < 0.3 else []
    count = 0
    while count < words:
        group = [draw_needle(rng, used_keys) for _ in range(1 + below(rng, 3) // 2)]
        added: list[str] = []
        for needle in group:
            added += [needle.statement(rng), *_between(rng, noise, 1)]
        added += _between(rng, noise, 3)
        for needle in shuffled(rng, group):
            added += [needle.question(rng), *_between(rng, noise, 1)]
        if earlier and rng.random() < 0.5:
            added.append(pick(rng, earlier).question(rng))
        if rng.random() < 0.3:
            added.append(repeated_run(rng, varied_run(rng), 2))
        earlier += group
        parts += added
        count += sum(part.count(" ") + 1 for part in added)
    return {"text": " ".join(parts).replace(" \n", "\n").replace("\n ", "\n").strip()}


def _between(rng: np.random.Generator, noise: bool, most: int) -> list[str]:
    """Return 0 to `most` sentences, each number equally likely."""
    return [NOISE if noise else sentence(rng) for _ in range(below(rng, most + 1))]


def haystack(rng: np.random.Generator, words: int) -> dict[str, str]:
    """Return a row of sentences without needles, to hide needles in."""
    return {"text": filler(rng, words)}
