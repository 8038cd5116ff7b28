r"""What a model gave as its answer: the last closed \boxed, or less strictly what stands for it."""

from __future__ import annotations

import re

# Any other escaped character is skipped, so that `\{` and `\}` are no braces.
_MARKS = re.compile(
    r"\\+(?:boxed|fbox|framebox)(?:\s*\{| +(?P<bare>[-+]?[.\d][^\s{}$\\]*))|\\.|[{}]", re.DOTALL
)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[-+]?\.\d+")


def last_boxed(text: str) -> str | None:
    r"""Return what the last closed `\boxed{...}` (or `\fbox`, `\framebox`) holds; None without one.

    A box that was cut off does not count; of nested ones the outermost closed one does. An empty
    box is no answer; `\boxed 5` is 5. One pass, whatever the text.
    """
    opened: list[int | None] = []  # per open brace, where a box's content begins
    found = None
    for mark in _MARKS.finditer(text):
        token = mark.group()
        if token == "{":
            opened.append(None)
        elif token == "}":
            start = opened.pop() if opened else None
            if start is not None:
                found = text[start : mark.start()]
        elif token.endswith("{") and len(token) > 2:
            opened.append(mark.end())
        elif mark["bare"]:
            found = mark["bare"].rstrip(".,;:")
    return found.strip() or None if found is not None else None


def last_number(text: str) -> str | None:
    """Return the last number of a text, without its thousands separators; None without one."""
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None
