"""A prompt as pieces: spans of the stored haystack, and the words around and inside it."""

from __future__ import annotations

from amnesia_bench.recall.niah.splicing import Span
from amnesia_bench.recall.niah.tasks import NiahTask
from amnesia_bench.records.niah import NiahDocument


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
