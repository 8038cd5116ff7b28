"""The three tasks: which haystack, which needle, which words around them.

Wording and order are those of RULER's niah_single_1/2/3 in lm-evaluation-harness 0.4.13
(lm_eval/tasks/ruler/prepare_niah.py), where one number or uuid is hidden under one key.
"""

from __future__ import annotations

from dataclasses import dataclass

from amnesia_bench.config.messages import nearest
from amnesia_bench.errors import UserError
from amnesia_bench.records.evaluation import Sampling
from amnesia_bench.requests.recall import NIAH_MAX_NEW_TOKENS

# What lm-eval's task files ask of a model.
NIAH_SAMPLING = Sampling(
    max_new_tokens=NIAH_MAX_NEW_TOKENS, temperature=0.0, top_p=1.0, top_k=None, stop=()
)
# lm-eval seeds Python's random numbers with it before a task makes its documents.
SEED = 0
# The haystack of niah_single_1, as often as it takes.
LINE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclass(frozen=True, kw_only=True)
class NiahTask:
    """One task. `value_noun` is what the needle hides: a number (7 digits) or a uuid."""

    name: str
    essays: bool
    value_noun: str

    @property
    def head(self) -> str:
        """The text before the haystack."""
        return (
            f"A special magic {self.value_noun} is hidden within the following text. Make sure "
            f"to memorize it. I will quiz you about the {self.value_noun} afterwards.\n"
        )

    def needle(self, key: str, value: str) -> str:
        """The sentence to be found."""
        return f"One of the special magic {self.value_noun}s for {key} is: {value}."

    def question(self, key: str) -> str:
        """The text after the haystack."""
        return (
            f"\nWhat is the special magic {self.value_noun} for {key} mentioned in the "
            "provided text?"
        )

    def gen_prefix(self, key: str) -> str:
        """The beginning of the answer, which the prompt ends with."""
        return f"The special magic {self.value_noun} for {key} mentioned in the provided text is"


TASKS = {
    task.name: task
    for task in (
        NiahTask(name="niah_single_1", essays=False, value_noun="number"),
        NiahTask(name="niah_single_2", essays=True, value_noun="number"),
        NiahTask(name="niah_single_3", essays=True, value_noun="uuid"),
    )
}


def find_task(name: str) -> NiahTask:
    """Return a task by its name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in TASKS:
        raise UserError(f"no task {name!r}", hint=nearest(name, list(TASKS)))
    return TASKS[name]
