"""Made-up essays, long enough for prompts of a few thousand tokens."""

from __future__ import annotations

import random

_TEXT = """
the of and a to in is you that it he was for on are as with his they I at be this have from
or one had by word but not what all were we when your can said there use an each which she
do how their if will up other about out many then them these so some her would make like
naïve café Mr. e.g. 3.5 U.S. don't well-known (see above) “quoted” —
"""
_WORDS = _TEXT.split()


def made_up_essay(sentences: int, seed: int = 0) -> str:
    """Return sentences of random words, with abbreviations, quotes and breaks of lines."""
    rng = random.Random(seed)
    made = []
    for _ in range(sentences):
        words = rng.choices(_WORDS, k=rng.randint(3, 20))
        made.append(" ".join(words).capitalize() + rng.choice((".", ".", "?", "!", '."', "...")))
    return "".join(sentence + rng.choice((" ", " ", "\n", "  ")) for sentence in made)
