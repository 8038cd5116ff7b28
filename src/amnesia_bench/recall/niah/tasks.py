"""The three NIAH tasks: the text of their prompts, and the scoring of answers.

The wording and order of the texts are those of RULER's niah_single_1/2/3 in lm-evaluation-harness
0.4.13 (lm_eval/tasks/ruler/prepare_niah.py), where one number or uuid is hidden under one key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from amnesia_bench.config.messages import nearest
from amnesia_bench.errors import UserError
from amnesia_bench.recall.niah.splicing import Span
from amnesia_bench.records.evaluation import Generation, Outcome, Sampling, Verdict
from amnesia_bench.records.niah import NiahDocument

# The sampling parameters of lm-eval's task files.
NIAH_SAMPLING = Sampling(max_new_tokens=128, temperature=0.0, top_p=1.0, top_k=None, stop=())
# lm-eval seeds Python's random generator with this value before a task builds its documents.
SEED = 0
# The haystack of niah_single_1 repeats this line.
LINE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclass(frozen=True, kw_only=True)
class NiahTask:
    """One NIAH task.

    `essays` is false if the haystack consists of repeated lines. `value_noun` is the kind of hidden
    value: "number" (7 digits) or "uuid".
    """

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
        """Return the sentence that contains the value."""
        return f"One of the special magic {self.value_noun}s for {key} is: {value}."

    def question(self, key: str) -> str:
        """Return the question, which is the text after the haystack."""
        return (
            f"\nWhat is the special magic {self.value_noun} for {key} mentioned in the "
            "provided text?"
        )

    def gen_prefix(self, key: str) -> str:
        """Return the first words of the answer, which are at the end of the prompt."""
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
        UserError: the task does not exist.
    """
    if name not in TASKS:
        raise UserError(f"no task {name!r}", hint=nearest(name, list(TASKS)))
    return TASKS[name]


def prompt_pieces(
    task: NiahTask, document: NiahDocument, position: int, key: str, value: str
) -> list[Span | str]:
    """Return lm-eval's `input` as a list of haystack spans and inserted strings.

    Args:
        task: the task.
        document: the haystack document.
        position: the character of the document before which the needle is inserted.
        key: the key in the question.
        value: the hidden value, which is the answer.
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
    """Return a needle with the spaces or the line break that lm-eval adds around it.

    Args:
        needle: the sentence that contains the value.
        position: the character of the document before which the needle is inserted.
        characters: the length of the document in characters.
        essays: True if the document consists of sentences, False if it consists of lines.
    """
    if not essays:
        return f"{needle}\n"
    # lm-eval joins the text before the needle, the needle and the text after it with spaces, even
    # if a text is empty.
    return f" {needle} " if position in (0, characters) else f"{needle} "


def lines_haystack(lines: int) -> str:
    """Return the haystack of niah_single_1: `LINE`, repeated `lines` times."""
    return "\n".join([LINE] * lines)


_CONTROL = re.compile(r"[\x00-\x1f]")


def score_needle(generation: Generation, value: str) -> Verdict:
    """Score one answer like lm-eval's `string_match_all` with a single value.

    The answer is correct if it contains the value. Case and white space around the answer are
    ignored, and control characters count as line breaks. The value may be part of a longer number:
    12345678 contains 1234567. An empty answer is `NO_ANSWER`, which counts as wrong.
    """
    answer = _CONTROL.sub("\n", generation.text.strip()).strip()
    if value.lower() in answer.lower():
        outcome = Outcome.CORRECT
    else:
        outcome = Outcome.WRONG if answer else Outcome.NO_ANSWER
    return Verdict(key=generation.key, outcome=outcome, answer=answer or None, detail=None)
