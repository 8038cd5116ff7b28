r"""What a model gave as its answer: the last closed \boxed, or less strictly what stands for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Any other escaped character is skipped, so that `\{` and `\}` are no braces.
_MARKS = re.compile(
    r"\\+(?:boxed|fbox|framebox)(?:\s*\{| +(?P<bare>[-+]?[.\d][^\s{}$\\]*))|\\.|[{}]", re.DOTALL
)
# What models write where the answer is to go.
_PLACEHOLDER = re.compile(
    r"(?:\s|[.…?_$<>\[\]()]|\\(?:[ ,;:!_]|$)"
    r"|\\(?:[lc]?dots|dotsc|q?quad|square|underline|text\w*|mbox)(?![A-Za-z])|\\(?:phantom|hspace)\{[^{}]*\}|[{}]"
    r"|(?i:(?:insert |put |type )?(?:(?:the|your|final|my) )*(?:answer|result|solution)(?: here)?)"
    r")*"
)
_PLACEHOLDER_CHARACTERS = 60
# Between boxes that belong together: a bullet, mathematics' own marks, "and", "or", a variable.
# Possessive, since a newline may stand before a bullet or alone.
_BETWEEN = re.compile(
    r"(?>\n\s{0,8}(?:[-*]|\d\.)\s|\s|[$,;.&]|\\[()\[\],;! ]|\\q?quad"
    r"|\\text\s*\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|\b[A-Za-z](?:_\{?\d\}?)?\s*=)*+"
)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[-+]?\.\d+")


@dataclass(frozen=True, kw_only=True)
class _Box:
    """Where a box is in a text, and where in it its content."""

    start: int
    end: int
    content: slice


def last_boxed(text: str, *, several: bool = False) -> str | None:
    r"""Return what the last closed `\boxed{...}` (or `\fbox`, `\framebox`) holds; None without one.

    A box that was cut off does not count, nor does one that only repeats the request for an answer:
    `\boxed{}`, `\boxed{...}`. Of nested boxes the outermost closed one counts; `\boxed 5` is 5. One
    pass, whatever the text.

    Args:
        text: an answer.
        several: the gold answer is a list, so neighbouring boxes at the end are its elements:
            `\boxed{1} and \boxed{-2}` is `1,-2`.
    """
    found = [box for box in _boxes(text) if not _is_placeholder(text[box.content].strip())]
    if not found:
        return None
    last = len(found) - 1
    while several and last and _BETWEEN.fullmatch(text, found[last - 1].end, found[last].start):
        last -= 1
    return ",".join(dict.fromkeys(text[box.content].strip() for box in found[last:]))


def without_boxes(text: str) -> str:
    """Return a text without its closed boxes, to be searched for an answer outside of them."""
    starts = [0, *(box.end for box in _boxes(text))]
    ends = [*(box.start for box in _boxes(text)), len(text)]
    return " ".join(text[start:end] for start, end in zip(starts, ends, strict=True))


def _boxes(text: str) -> list[_Box]:
    """Return the outermost closed boxes in their order."""
    opened: list[tuple[int, int] | None] = []  # per open brace: where a box and its content begin
    found: list[_Box] = []
    for mark in _MARKS.finditer(text):
        token = mark.group()
        if token == "{":
            opened.append(None)
        elif token == "}":
            if place := opened.pop() if opened else None:
                while found and found[-1].start > place[0]:
                    found.pop()
                inside = slice(place[1], mark.start())
                found.append(_Box(start=place[0], end=mark.end(), content=inside))
        elif token.endswith("{") and len(token) > 2:
            opened.append((mark.start(), mark.end()))
        elif mark["bare"]:
            inside = slice(
                mark.start("bare"), mark.start("bare") + len(mark["bare"].rstrip(".,;:"))
            )
            found.append(_Box(start=mark.start(), end=mark.end(), content=inside))
    return found


def _is_placeholder(content: str) -> bool:
    """Return whether an answer repeats the request for an answer, and holds none."""
    if len(content) > _PLACEHOLDER_CHARACTERS:
        return False
    return _PLACEHOLDER.fullmatch(content) is not None


def last_number(text: str) -> str | None:
    """Return the last number of a text, without its thousands separators; None without one."""
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None
