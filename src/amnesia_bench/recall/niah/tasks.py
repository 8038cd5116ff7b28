"""The three NIAH tasks with a single needle: the text of their prompts; the scoring of all tasks.

The wording and order of the texts are those of RULER's niah_single_1/2/3 in lm-evaluation-harness
0.4.13 (lm_eval/tasks/ruler/prepare_niah.py), where one number or uuid is hidden under one key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amnesia_bench.recall.niah.splicing import Span
from amnesia_bench.records.evaluation import Generation, Outcome, Sampling, Verdict
from amnesia_bench.records.ids import RECALL_IDS
from amnesia_bench.records.niah import NiahDocument
from amnesia_bench.records.recall import found_values, recalled_text

# The sampling parameters of lm-eval's task files.
NIAH_SAMPLING = Sampling(max_new_tokens=128, temperature=0.0, top_p=1.0, top_k=None, stop=())
# lm-eval seeds Python's random generator with this value before a task builds its documents.
SEED = 0
# The haystack of niah_single_1 repeats this line.
LINE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."


@dataclass(frozen=True, kw_only=True)
class RecallTask:
    """One of RULER's tasks.

    Attributes:
        name: the name of the task in lm-eval.
        essays: whether its haystack consists of essays.
        delimiter: lm-eval puts it between the input and the beginning of the answer.
    """

    name: str
    essays: bool = False
    delimiter: str = " "

    @property
    def answer_tokens(self) -> int:
        """The maximum number of tokens per answer in lm-eval's task file."""
        return RECALL_IDS[self.name].answer_tokens

    @property
    def scorer(self) -> str:
        """The name of lm-eval's metric."""
        return RECALL_IDS[self.name].scorer


@dataclass(frozen=True, kw_only=True)
class NiahTask(RecallTask):
    """One NIAH task with a single needle.

    If `essays` is false, the haystack consists of repeated lines. `value_noun` is the kind of
    hidden value: "number" (7 digits) or "uuid".
    """

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


SINGLE_TASKS = {
    task.name: task
    for task in (
        NiahTask(name="niah_single_1", essays=False, value_noun="number"),
        NiahTask(name="niah_single_2", essays=True, value_noun="number"),
        NiahTask(name="niah_single_3", essays=True, value_noun="uuid"),
    )
}


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


def score_answer(generation: Generation, values: Sequence[str]) -> Verdict:
    """Score one answer like lm-eval: the verdict is `CORRECT` if the answer contains all values.

    An empty answer is `NO_ANSWER`, which counts as wrong. If an answer contains only some of the
    values, the verdict's `detail` gives their number. See `found_values`.
    """
    answer = recalled_text(generation.text)
    found = sum(found_values(generation.text, values))
    if found == len(values):
        outcome = Outcome.CORRECT
    else:
        outcome = Outcome.WRONG if answer else Outcome.NO_ANSWER
    detail = f"{found} of {len(values)} values" if 0 < found < len(values) else None
    return Verdict(key=generation.key, outcome=outcome, answer=answer or None, detail=detail)
