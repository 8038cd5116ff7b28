"""Quote untrusted text in Markdown, so that names of folders and models never act as markup."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Characters that could start HTML, a link, an image, code or a table cell. Emphasis marks are
# harmless, so they are not escaped.
_ESCAPED = {
    **{"&": "&amp;", "<": "&lt;", ">": "&gt;"},
    **{mark: f"\\{mark}" for mark in "\\`[]|"},
}
_TABLE = str.maketrans(_ESCAPED)
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


def escape(text: str) -> str:
    """Return a text on one line, with its Markdown markup escaped."""
    return _INVISIBLE.sub(" ", text).translate(_TABLE)


def code(text: str) -> str:
    """Return a text as a Markdown code span; the text may contain backticks."""
    shown = _INVISIBLE.sub(" ", text)
    fence = _fence(shown, shortest=1)
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def block(text: str, language: str) -> list[str]:
    """Return a text as the lines of a fenced code block; the text may contain such fences."""
    fence = _fence(text, shortest=3)
    return [f"{fence}{language}", text, fence]


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Return the lines of a Markdown table whose first `left` columns are aligned to the left.

    Cells are written as they are; escape those with names of other people's choice.
    """
    rule = ["---" if i < left else "--:" for i in range(len(heads))]
    return [f"| {' | '.join(row)} |" for row in (heads, rule, *rows)]


def _fence(text: str, *, shortest: int) -> str:
    longest = max(map(len, re.findall("`+", text)), default=0)
    return "`" * max(shortest, longest + 1)
