"""Instructions without chains of thought: two control datasets that stand in for Tulu-3.

Row i of both controls has the same texts and the same answer. Each instruction asks for events of a
story, which are to be copied without any reasoning. In the short-range control, the story is
directly before the instruction. In the long-range control, it is at the beginning of the prompt,
and all other text is between them. So if models trained on the two controls differ, the distance
is the cause.

Stories, instructions and answers consist of words that the base model's own training data contain.
A model of the tiny profile did not learn instructions in other words within a fine-tune, and forgot
everything while it was trained on them (docs/LOG.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from amnesia_bench.data.synthetic.problems import Story, draw_story
from amnesia_bench.data.synthetic.prose import filler
from amnesia_bench.data.synthetic.words import DAYS, below, pick


@dataclass(frozen=True)
class _Parts:
    story: str
    other: str
    instruction: str
    answer: str


def short_range(rng: np.random.Generator, words: int) -> dict[str, object]:
    """Return a row in Tulu-3's schema: about `words` words of other text, the story, the task."""
    parts = _draw(rng, words)
    return _row(f"{parts.other}\n{parts.story}\n{parts.instruction}", parts.answer)


def long_range(rng: np.random.Generator, words: int) -> dict[str, object]:
    """Return a row in Tulu-3's schema: the story, about `words` words of other text, the task."""
    parts = _draw(rng, words)
    return _row(f"{parts.story}\n{parts.other}\n{parts.instruction}", parts.answer)


def _draw(rng: np.random.Generator, words: int) -> _Parts:
    story = draw_story(rng)
    day = below(rng, len(story.events))
    instruction, events = pick(
        rng,
        (
            ("What is mentioned in the provided text?", story.events),
            (f"What is mentioned on {DAYS[day]} and afterwards?", story.events[day:]),
            (f"What is mentioned on {DAYS[day]}?", story.events[day : day + 1]),
        ),
    )
    return _Parts(
        story=str(story),
        other=filler(rng, words),
        instruction=instruction,
        answer=str(Story(story.name, events)),
    )


def _row(prompt: str, answer: str) -> dict[str, object]:
    return {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
    }
