"""RULER's NIAH tasks with several needles, or with a haystack that consists of needles.

The wording and the order of the draws are those of lm-evaluation-harness 0.4.13
(lm_eval/tasks/ruler/prepare_niah.py and niah_utils.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Literal

from amnesia_bench.errors import UserError
from amnesia_bench.recall.niah.documents import Essays, shared_characters
from amnesia_bench.recall.niah.drafts import (
    Draft,
    NeedlePlace,
    Pieces,
    Search,
    TokenMeter,
    TooLongError,
)
from amnesia_bench.recall.niah.generate import TooShortError
from amnesia_bench.recall.niah.splicing import Span
from amnesia_bench.recall.niah.streams import RandomStreams
from amnesia_bench.recall.niah.tasks import RecallTask

Kind = Literal["word", "number", "uuid"]
_ESSAYS_STEP = 500
# lm-eval shuffles the needles of a prompt with a generator of this seed.
_SHUFFLE_SEED = 42


@dataclass(frozen=True, kw_only=True)
class NeedlesTask(RecallTask):
    """One NIAH task with `keys` keys of `values` values each, of which `queries` are asked for.

    If `essays` is false, the haystack consists of needles with other keys.
    """

    key_kind: Kind = "word"
    value_kind: Kind = "number"
    keys: int = 1
    values: int = 1
    queries: int = 1

    @property
    def needles(self) -> int:
        """The number of needles besides those of the haystack."""
        return self.keys * self.values

    @property
    def one_answer(self) -> bool:
        """Whether one value is asked for: the texts then speak of one value."""
        return self.queries * self.values == 1

    @property
    def head(self) -> str:
        """The text before the haystack."""
        noun = self.value_kind
        start = (
            f"A special magic {noun} is" if self.one_answer else f"Some special magic {noun}s are"
        )
        quiz = noun if self.one_answer else f"{noun}s"
        return (
            f"{start} hidden within the following text. Make sure to memorize it. I will quiz you "
            f"about the {quiz} afterwards.\n"
        )

    def needle(self, key: str, value: str) -> str:
        """Return the sentence that contains a value."""
        return f"One of the special magic {self.value_kind}s for {key} is: {value}."

    def question(self, query: str) -> str:
        """Return the text after the haystack."""
        asked = self._asked("is the", "are all the")
        return f"\nWhat {asked} for {query} mentioned in the provided text?"

    def gen_prefix(self, query: str) -> str:
        """Return the first words of the answer."""
        verb = "is" if self.one_answer else "are"
        return f"{self._asked('The', 'The')} for {query} mentioned in the provided text {verb}"

    def _asked(self, one: str, several: str) -> str:
        noun = self.value_kind
        return (
            f"{one} special magic {noun}" if self.one_answer else f"{several} special magic {noun}s"
        )


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """The random part of a prompt: its text, the answers, and where their needles are."""

    pieces: Pieces
    outputs: tuple[str, ...]
    query: str
    needles: tuple[NeedlePlace, ...]


class NeedlesDrawer:
    """Draws the prompts of one task at one length.

    Args:
        task: the task.
        context_tokens: lm-eval's max_seq_length.
        words: the keys of the kind "word".
        essays: the documents of the haystack; None if it consists of needles.
        meter: counts tokens; its base text is a document of the essays.
    """

    def __init__(
        self,
        task: NeedlesTask,
        context_tokens: int,
        words: Sequence[str],
        essays: Essays | None,
        meter: TokenMeter,
    ) -> None:
        self._task = task
        self._context_tokens = context_tokens
        self._words = words
        self._essays = essays
        self.meter = meter
        short = 5 if context_tokens < 4096 else 25
        self._step = short if essays is None else _ESSAYS_STEP
        self._documents: dict[int, tuple[int, str]] = {}

    def draw(self, samples: int, streams: RandomStreams, *, every: bool) -> list[Draft]:
        """Draw the prompts; see `Drawer`.

        Raises:
            TooShortError: the essays are too short to fill the context length.
        """
        task, rng = self._task, streams.python
        search = Search(
            first=max(self._step, task.needles),
            step=self._step,
            reserved=task.answer_tokens,
            context_tokens=self._context_tokens,
            every=every,
        )

        def text(units: int) -> Pieces:
            drawn = self._drawn(units, rng)
            # Without a separator: the answers are appended to the text and joined by spaces.
            pieces = [*drawn.pieces, " ".join(drawn.outputs)]
            self._check_growth(units, pieces)
            return pieces

        units = max(search.size(text, self.meter), task.needles)
        return [self._sample(index, units, rng) for index in range(samples)]

    def _check_growth(self, units: int, pieces: Pieces) -> None:
        """Raise an error if the haystack cannot fill the context length."""
        available = None if self._essays is None else self._essays.available
        exhausted = available is not None and units > available
        if not exhausted and units <= self._context_tokens:
            return
        tokens = self.meter.tokens(pieces) + self._task.answer_tokens
        if tokens > self._context_tokens:
            return  # the search ends here
        if exhausted:
            raise TooShortError(tokens)
        raise UserError(
            f"{self._task.name}@{self._context_tokens}: {units} words or lines have only {tokens} "
            "tokens",
            hint="A haystack with so few tokens per word cannot fill this length.",
        )

    def _sample(self, index: int, largest: int, rng: Random) -> Draft:
        length = 0
        for units in range(largest, 0, -self._step):
            drawn = self._drawn(units, rng)
            length = self.meter.tokens(drawn.pieces) + self._task.answer_tokens
            if length <= self._context_tokens:
                return Draft(
                    index=index,
                    pieces=drawn.pieces,
                    outputs=drawn.outputs,
                    gen_prefix=self._task.gen_prefix(drawn.query),
                    length=length,
                    needles=drawn.needles,
                )
        # lm-eval skips such prompts with a warning.
        raise TooLongError(length)

    def _drawn(self, units: int, rng: Random) -> _Drawn:
        task = self._task
        keys, values, sentences = [], [], []
        for _ in range(task.keys):
            keys.append(self._random(task.key_kind, rng))
            values.append([self._random(task.value_kind, rng) for _ in range(task.values)])
            sentences += [(keys[-1], value) for value in values[-1]]
        Random(_SHUFFLE_SEED).shuffle(sentences)
        texts = [task.needle(key, value) for key, value in sentences]
        if self._essays is not None:
            pieces, places = self._in_essays(units, texts, rng)
        else:
            pieces, places = self._among_needles(units, texts, rng)
        asked = rng.sample(range(task.keys), task.queries)
        queries = [keys[i] for i in asked]
        query = ", ".join(queries[:-1]) + ", and " + queries[-1] if queries[1:] else queries[0]
        return _Drawn(
            pieces=[task.head, *pieces, task.question(query)],
            outputs=tuple(value for i in asked for value in values[i]),
            query=query,
            needles=tuple(
                place for place, (key, _) in zip(places, sentences, strict=True) if key in queries
            ),
        )

    def _random(self, kind: Kind, rng: Random) -> str:
        if kind == "word":
            return rng.choice(self._words)
        if kind == "number":
            return str(rng.randint(10**6, 10**7 - 1))
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))

    def _in_essays(
        self, units: int, texts: Sequence[str], rng: Random
    ) -> tuple[list[Span | str], list[NeedlePlace]]:
        """Return a document with needles between its sentences, and the needles."""
        assert self._essays is not None
        starts = self._essays.sentence_starts(units)
        depths = sorted(rng.sample(self._essays.places(units), len(texts)))
        cuts = [0, *(int(len(starts) * (depth / 100)) for depth in depths), len(starts)]
        pieces: list[Span | str] = []
        needles = []
        at = len(self._task.head)
        for i, (first, last) in enumerate(pairwise(cuts)):
            # lm-eval joins all parts with spaces, including parts without sentences.
            sentences, characters = self._sentences(units, first, last)
            pieces += sentences
            at += characters
            if i == len(texts):
                break
            needles.append(
                NeedlePlace(start=at + 1, end=at + 1 + len(texts[i]), depth_percent=depths[i])
            )
            pieces.append(f" {texts[i]} ")
            at += len(texts[i]) + 2
        return pieces, needles

    def _sentences(self, units: int, first: int, last: int) -> tuple[list[Span | str], int]:
        """Return the pieces of some sentences of a document, and their length in characters."""
        assert self._essays is not None
        starts, text = self._essays.sentence_starts(units), self._essays.text(units)
        if first == last:
            return [], 0
        begin = starts[first]
        end = starts[last] - 1 if last < len(starts) else len(text)
        shared, _ = self._document(units)
        return [
            Span(begin, max(begin, min(end, shared))),
            text[max(begin, shared) : end],
        ], end - begin

    def _document(self, units: int) -> tuple[int, str]:
        """Return how many characters of a document the base text has too, and the others."""
        assert self._essays is not None
        if units not in self._documents:
            text = self._essays.text(units)
            shared = shared_characters(self.meter.base_text, text)
            self._documents[units] = (shared, text[shared:])
        return self._documents[units]

    def _among_needles(
        self, units: int, texts: Sequence[str], rng: Random
    ) -> tuple[list[Span | str], list[NeedlePlace]]:
        """Return lines of needles with other keys, with `texts` inserted, and their places."""
        task = self._task
        lines = []
        for _ in range(units):
            key = self._random(task.key_kind, rng)
            lines.append(task.needle(key, self._random(task.value_kind, rng)))
        places = sorted(rng.sample(range(units), len(texts)), reverse=True)
        for place, text in zip(places, texts, strict=True):
            lines.insert(place, text)
        (place,), (text,) = places, texts
        start = len(task.head) + sum(len(line) + 1 for line in lines[:place])
        needle = NeedlePlace(start=start, end=start + len(text), depth_percent=100 * place / units)
        return ["\n".join(lines)], [needle]


NEEDLE_TASKS = (
    NeedlesTask(name="niah_multikey_1", essays=True, keys=4),
    NeedlesTask(name="niah_multikey_2"),
    NeedlesTask(name="niah_multikey_3", key_kind="uuid", value_kind="uuid"),
    NeedlesTask(name="niah_multivalue", essays=True, values=4),
    NeedlesTask(name="niah_multiquery", essays=True, keys=4, queries=4),
)
