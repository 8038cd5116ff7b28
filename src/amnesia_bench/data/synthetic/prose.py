"""Web text: templated sentences with needles, and questions about them in the same document.

It stands in for FineWeb-Edu. Needles and questions have the wording of NIAH (`recall.niah.tasks`)
or a short form, so a model trained on them can answer NIAH prompts. Each needle is soon followed by
a question about it, and often by a second question later. Without that many questions, a model does
not learn retrieval within minutes of training. Before that, it must learn to copy, from `copies`.
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

# The noise sentences of RULER, of which the haystack of niah_single_1 consists.
NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."

_HEAD = (
    "A special magic number is hidden within the following text. Make sure to memorize it. I will "
    "quiz you about the number afterwards.\n"
)
_WORDS = (*ADJECTIVES, *PEOPLE, *PLACES, *OBJECTS, *VERBS, *TIMES, *NAMES)
_PLAIN_DOCUMENTS = 0.1
_NOISE_DOCUMENTS = 0.25
_SHORT = 0.7  # probability of the short form, for needles and for questions
_UUID_GROUPS = (8, 4, 4, 4, 12)  # number of hex digits in each group


def sentence(rng: np.random.Generator) -> str:
    """Return a random sentence, which may contain numbers but no needle."""
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
    """Return random sentences without needles, with at least `words` words in total."""
    sentences: list[str] = []
    count = 0
    while count < words:
        sentences.append(sentence(rng))
        count += sentences[-1].count(" ") + 1
    return " ".join(sentences)


@dataclass(frozen=True)
class Needle:
    """A key and the value to recall for it; `noun` is the kind of value, "number" or "uuid"."""

    noun: str
    key: str
    value: str

    def statement(self, rng: np.random.Generator) -> str:
        """Return a sentence that states the value, in one of two forms."""
        if rng.random() < _SHORT:
            return f"{self.key} is: {self.value}."
        return f"One of the special magic {self.noun}s for {self.key} is: {self.value}."

    def question(self, rng: np.random.Generator) -> str:
        """Return a question for the value together with its answer, in one of two forms."""
        if rng.random() < _SHORT:
            return f"{self.key} is {self.value}."
        subject = f"the special magic {self.noun} for {self.key} mentioned in the provided text"
        return f"\nWhat is {subject}? T{subject[1:]} is {self.value}.\n"


def draw_needle(rng: np.random.Generator, used_keys: set[str]) -> Needle:
    """Return a random needle whose key is not in `used_keys`, and add its key to them."""
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
    """Return a random text to copy: hex digits, often with dashes, or a list of events."""
    draw = rng.random()
    if draw < 0.4:
        return hexadecimal(rng, 2 * (3 + below(rng, 10)))
    if draw < 0.7:
        return "-".join(hexadecimal(rng, 1 + below(rng, 10)) for _ in range(2 + below(rng, 4)))
    events = draw_problem(rng, test=False).events
    return " ".join(f"{event.verb} {event.amount}" for event in events)


def repeated_run(rng: np.random.Generator, run: str, most: int) -> str:
    """Return a text in which `run` occurs two to `most` times, with words between them.

    The number of occurrences varies, and so does the number of words between them (0 to 5), since
    otherwise a model would learn to copy from a fixed distance.
    """
    parts: list[str] = []
    for time in range(2 + below(rng, most - 1)):
        parts += [pick(rng, _WORDS) for _ in range(below(rng, 6) if time else 1)]
        parts.append(f"{run}.")
    return " ".join(parts)


def copies(rng: np.random.Generator) -> dict[str, str]:
    """Return a row in FineWeb-Edu's schema for learning to copy pairs of hex digits.

    In a third of the rows, some pairs end in a dash, which makes them different tokens. The data of
    later stages rarely contain these tokens, and models failed at the dashes of uuids
    (docs/LOG.md).
    """
    pairs = [hexadecimal(rng, 2) for _ in range(3 + below(rng, 8))]
    if below(rng, 3) == 0:
        pairs[:-1] = [pair + "-" if below(rng, 2) == 0 else pair for pair in pairs[:-1]]
    return {"text": repeated_run(rng, "".join(pairs), 4)}


def varied_copies(rng: np.random.Generator) -> dict[str, str]:
    """Return a row in FineWeb-Edu's schema for learning to copy all kinds of `varied_run`."""
    return {"text": repeated_run(rng, varied_run(rng), 4)}


def document(rng: np.random.Generator, words: int) -> dict[str, str]:
    """Return a row in FineWeb-Edu's schema: a text of about `words` words.

    One in ten texts has no needles. The other texts have groups of needles. A question for each
    needle follows its group, and some questions are repeated later.
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
    """Return a random number of sentences from 0 to `most`, all numbers being equally likely."""
    return [NOISE if noise else sentence(rng) for _ in range(below(rng, most + 1))]


def haystack(rng: np.random.Generator, words: int) -> dict[str, str]:
    """Return a row of sentences without needles, as an essay for the haystack of NIAH prompts."""
    return {"text": filler(rng, words)}
