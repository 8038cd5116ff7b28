"""The random numbers from which lm-eval 0.4.13 draws a task's prompts, as a new process has them.

lm-eval seeds Python's generator with 0 and numpy's with 1234 before it builds its tasks. ruler_cwe
has a generator of its own, which first shuffles the word list. The questions' texts are shuffled
with the same new generator for each prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Self

import numpy as np

NUMPY_SEED = 1234
WORDS_SEED = 42
TEXTS_SEED = 42


@dataclass(frozen=True)
class RandomStreams:
    """The random generators of a task.

    `words` is ruler_cwe's own, before it shuffles the words. `texts_seed` is the seed of the
    generators that shuffle the texts of questions.
    """

    python: Random
    numpy: np.random.RandomState
    words: Random
    texts_seed: int

    @classmethod
    def of_seed(cls, seed: int) -> Self:
        """Return the generators of a seed; those of seed 0 are lm-eval's."""
        return cls(
            python=Random(seed),
            numpy=np.random.RandomState(NUMPY_SEED + seed),
            words=Random(WORDS_SEED + seed),
            texts_seed=TEXTS_SEED + seed,
        )
