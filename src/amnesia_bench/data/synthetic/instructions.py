"""Instructions without chains of thought: two control datasets that stand in for Tulu-3.

Row i of both controls has the same texts and the same answer. Each instruction refers to a list. In
the short-range control, the list is directly before the instruction. In the long-range control, it
is at the beginning of the prompt, and all other text is between them. So if models trained on the
two controls differ, the distance is the cause.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from amnesia_bench.data.synthetic.prose import filler
from amnesia_bench.data.synthetic.words import (
    ADJECTIVES,
    OBJECTS,
    PLACES,
    below,
    hexadecimal,
    pick,
    shuffled,
)


@dataclass(frozen=True)
class _Parts:
    listed: str
    other: str
    task: str
    answer: str


def short_range(rng: np.random.Generator, words: int) -> dict[str, object]:
    """Return a row in Tulu-3's schema: about `words` words of other text, the list, the task."""
    parts = _draw(rng, words)
    return _row(f"{parts.other}\n{parts.listed}\n{parts.task}", parts.answer)


def long_range(rng: np.random.Generator, words: int) -> dict[str, object]:
    """Return a row in Tulu-3's schema: the list, about `words` words of other text, the task."""
    parts = _draw(rng, words)
    return _row(f"{parts.listed}\n{parts.other}\n{parts.task}", parts.answer)


def _draw(rng: np.random.Generator, words: int) -> _Parts:
    # About half of the items are hex codes, since the chains in `problems` copy such codes too.
    dictionary_words = shuffled(rng, OBJECTS + PLACES + ADJECTIVES)[: 4 + below(rng, 4)]
    items = [hexadecimal(rng, 4) if below(rng, 2) == 0 else word for word in dictionary_words]
    # All tasks only need copying: a model of the tiny profile did not learn to count or to reverse
    # lists, and forgot everything when it was trained on such tasks (docs/LOG.md).
    position = below(rng, 3)
    task, answer = pick(
        rng,
        (
            ("Repeat the list.", items),
            (f"Say the list from {items[position]} on.", items[position:]),
            (f"What stands after {items[position]} in the list?", [items[position + 1]]),
        ),
    )
    return _Parts(
        listed=f"The list: {', '.join(items)}.",
        other=filler(rng, words),
        task=task,
        answer=f"{', '.join(answer)}.",
    )


def _row(prompt: str, answer: str) -> dict[str, object]:
    return {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
    }
