"""RULER's aggregation tasks: find the most common words (ruler_cwe), or coded words (ruler_fwe).

The wording and the order of the draws are those of lm-evaluation-harness 0.4.13
(lm_eval/tasks/ruler/cwe_utils.py and fwe_utils.py). Prompts share only their first sentences.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from random import Random

import numpy as np

from amnesia_bench.recall.niah.drafts import Draft, Pieces, Search, TokenMeter, TooLongError
from amnesia_bench.recall.niah.streams import RandomStreams
from amnesia_bench.recall.niah.tasks import RecallTask

COMMON_WORDS_TASK = RecallTask(name="ruler_cwe", delimiter="\n\n")
CODED_WORDS_TASK = RecallTask(name="ruler_fwe")

_COMMON = 10
_STEP = 10
_COMMON_HEAD = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n"
)
_COMMON_QUESTION = "\nQuestion: What are the 10 most common words in the above list?"
_COMMON_PREFIX = "Answer: The top 10 words that appear most often in the list are:"
# lm-eval draws again for ever if the smallest prompt does not fit; its length hardly varies.
_ATTEMPTS = 200

_CODED_HEAD = (
    "Read the following coded text and track the frequency of each coded word. Find the three most "
    "frequently appeared coded words. "
)
_CODED_QUESTION = (
    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three "
    "most frequently appeared words in the above coded text?"
)
_CODED_PREFIX = (
    "Answer: According to the coded text above, the three most frequently appeared words are:"
)
_LETTERS = 6
_EXPONENT = 2.0
_ZETA = math.pi**2 / 6  # of the exponent
_SHUFFLE_SEED = 42
# Below this length, lm-eval's vocabulary has no word besides the noise.
_SHORTEST_CODED_TOKENS = 100


class CommonWordsDrawer:
    """Draws the prompts of ruler_cwe at one length.

    Args:
        context_tokens: lm-eval's max_seq_length.
        words: all words, sorted.
        meter: counts tokens.
    """

    def __init__(self, context_tokens: int, words: Sequence[str], meter: TokenMeter) -> None:
        self._context_tokens = context_tokens
        self._sorted_words = words
        self._words: list[str] = []
        self.meter = meter

    def draw(self, samples: int, streams: RandomStreams, *, every: bool) -> list[Draft]:
        """Draw the prompts; see `Drawer`."""
        self._words = list(self._sorted_words)
        streams.words.shuffle(self._words)
        search = Search(
            first=_STEP,
            step=_STEP,
            reserved=COMMON_WORDS_TASK.answer_tokens,
            context_tokens=self._context_tokens,
            largest=len(self._words),
            every=every,
        )

        def text(size: int) -> Pieces:
            example, prompt, common = self._drawn(size, streams)
            return [f"{example}\n{prompt} {_numbered(common)}"]

        size = search.size(text, self.meter)
        if size < _STEP:
            # lm-eval then lists no words, and its answer is empty.
            (smallest,) = text(_STEP)
            raise TooLongError(self.meter.tokens([smallest]) + COMMON_WORDS_TASK.answer_tokens)
        return [self._sample(index, size, streams) for index in range(samples)]

    def _sample(self, index: int, size: int, streams: RandomStreams) -> Draft:
        length = 0
        for _ in range(_ATTEMPTS + size // _STEP):
            example, prompt, common = self._drawn(size, streams)
            length = self.meter.tokens([prompt]) + COMMON_WORDS_TASK.answer_tokens
            if length <= self._context_tokens:
                return Draft(
                    index=index,
                    pieces=[prompt[: prompt.rindex(f" {_COMMON_PREFIX}")].strip()],
                    outputs=tuple(common),
                    gen_prefix=_COMMON_PREFIX,
                    length=length,
                    example=example,
                    measured_suffix=f" {_COMMON_PREFIX}",
                )
            size -= _STEP if size > _STEP else 0
        raise TooLongError(length)

    def _drawn(self, size: int, streams: RandomStreams) -> tuple[str, str, list[str]]:
        """Return the text of an example with its answer, that of a prompt, and its answer."""
        long = self._context_tokens >= 4096
        example, example_common = self._list(*((40, 10, 3) if long else (20, 3, 1)), streams)
        listed, common = self._list(size, *((30, 3) if long else (6, 1)), streams)
        end = f"{_COMMON_QUESTION} {_COMMON_PREFIX}"
        return (
            f"{_COMMON_HEAD}{example}{end}{_numbered(example_common)}",
            f"{_COMMON_HEAD}{listed}{end}",
            common,
        )

    def _list(
        self, size: int, common_times: int, other_times: int, streams: RandomStreams
    ) -> tuple[str, list[str]]:
        """Return a shuffled, numbered list of words, and the most common ones."""
        drawn = streams.python.sample(self._words, size)
        common, others = drawn[:_COMMON], drawn[_COMMON:]
        listed = common * common_times + others * other_times
        streams.words.shuffle(listed)
        return _numbered(listed), common


class CodedWordsDrawer:
    """Draws the prompts of ruler_fwe at one length."""

    def __init__(self, context_tokens: int, meter: TokenMeter) -> None:
        self._context_tokens = context_tokens
        self.meter = meter

    def draw(self, samples: int, streams: RandomStreams, *, every: bool) -> list[Draft]:
        """Draw the prompts; see `Drawer`.

        The prompt itself fills the context length: lm-eval reserves no tokens for the answer.
        """
        if self._context_tokens < _SHORTEST_CODED_TOKENS:
            raise TooLongError(_SHORTEST_CODED_TOKENS)
        size = self._grown(self._vocabulary(streams.python))
        return [self._sample(index, size, streams.python) for index in range(samples)]

    def _sample(self, index: int, size: int, rng: Random) -> Draft:
        vocabulary = self._vocabulary(rng)
        if size <= 0:
            size = self._grown(vocabulary)
        while True:
            text = _coded_text(size, vocabulary)
            tokens = self.meter.tokens([text])
            if tokens <= self._context_tokens:
                break
            if size <= 0:
                raise TooLongError(tokens)
            size -= self._step
        return Draft(
            index=index,
            pieces=[text[: text.rindex(f" {_CODED_PREFIX}")].strip()],
            outputs=tuple(vocabulary[1:4]),
            gen_prefix=_CODED_PREFIX,
            length=tokens + CODED_WORDS_TASK.answer_tokens,
            measured_suffix=f" {_CODED_PREFIX}",
        )

    def _grown(self, vocabulary: Sequence[str]) -> int:
        """Return the last size before the text fills the context length; it may be negative."""
        size = self._context_tokens // _LETTERS
        while self.meter.tokens([_coded_text(size, vocabulary)]) < self._context_tokens:
            size += self._step
        return size - self._step

    @property
    def _step(self) -> int:
        return self._context_tokens // 32

    def _vocabulary(self, rng: Random) -> list[str]:
        """Return new coded words, the most common first; the very first is noise."""
        size = self._context_tokens // 50

        def word() -> str:
            return "".join(rng.choices(string.ascii_lowercase, k=_LETTERS))

        words = [word() for _ in range(size)]
        while len(set(words)) < size:
            words.append(word())
        vocabulary = sorted(set(words))
        Random(_SHUFFLE_SEED).shuffle(vocabulary)
        vocabulary[0] = "..."
        return vocabulary


def _coded_text(size: int, vocabulary: Sequence[str]) -> str:
    ranks = np.arange(1, len(vocabulary) + 1)
    counts = (size * (ranks**-_EXPONENT) / _ZETA).astype(int)
    listed = [word for word, count in zip(vocabulary, counts, strict=True) for _ in range(count)]
    Random(_SHUFFLE_SEED).shuffle(listed)
    return f"{_CODED_HEAD}{' '.join(listed)}{_CODED_QUESTION} {_CODED_PREFIX}"


def _numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))
