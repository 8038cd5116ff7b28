"""The three tasks: which haystack and needle, which words around them, and which answer is right.

Wording and order are those of RULER's niah_single_1/2/3 in lm-evaluation-harness 0.4.13
(lm_eval/tasks/ruler/prepare_niah.py), where one number or uuid is hidden under one key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from amnesia_bench.config.messages import nearest
from amnesia_bench.errors import UserError
from amnesia_bench.recall.niah.splicing import Span
from amnesia_bench.records.evaluation import Generation, Outcome, Sampling, Verdict
from amnesia_bench.records.niah import NiahDocument

# What lm-eval's task files ask of a model.
NIAH_SAMPLING = Sampling(max_new_tokens=128, temperature=0.0, top_p=1.0, top_k=None, stop=())
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


def prompt_pieces(
    task: NiahTask, document: NiahDocument, position: int, key: str, value: str
) -> list[Span | str]:
    """Return lm-eval's `input`.

    Args:
        task: whose wording.
        document: the haystack.
        position: the character of the document that the needle stands before.
        key: what the question asks for.
        value: the answer.
    """
    inserted = surrounded(
        task.needle(key, value), position, document.characters, essays=task.essays
    )
    before = min(position, document.shared)
    within_tail = position - before
    tail_before, tail_after = document.tail[:within_tail], document.tail[within_tail:]
    return [
        task.head,
        Span(0, before),
        tail_before + inserted,
        Span(before, document.shared),
        tail_after + task.question(key),
    ]


def surrounded(needle: str, position: int, characters: int, *, essays: bool) -> str:
    """Return a needle with the spaces or the line break that set it off.

    Args:
        needle: the sentence.
        position: the character of the document that it stands before.
        characters: the length of the document.
        essays: whether the document consists of sentences, or else of lines.
    """
    if not essays:
        return f"{needle}\n"
    # lm-eval joins what is before, the needle and what is after, be it empty, with spaces.
    return f" {needle} " if position in (0, characters) else f"{needle} "


_CONTROL = re.compile(r"[\x00-\x1f]")


def score_needle(generation: Generation, value: str) -> Verdict:
    """Judge one answer by lm-eval's `string_match_all` with one value to be found.

    White space around the answer and control characters in it do not count, nor does the case.
    The value may stand inside a longer number: 12345678 holds 1234567. An answer of nothing is
    `NO_ANSWER`, which is as wrong.
    """
    answer = _CONTROL.sub("\n", generation.text.strip()).strip()
    if value.lower() in answer.lower():
        outcome = Outcome.CORRECT
    else:
        outcome = Outcome.WRONG if answer else Outcome.NO_ANSWER
    return Verdict(key=generation.key, outcome=outcome, answer=answer or None, detail=None)
