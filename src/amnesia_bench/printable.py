"""Texts of others, made safe to print: what a terminal would act on is shown, not sent."""

from __future__ import annotations


def printable(text: str, *, keep: str = "") -> str:
    r"""Return a text with its control and format characters, and lone surrogates, as escapes.

    Escape sequences (`\x1b[2J`), carriage returns, and characters that turn the direction of
    writing (`\u202e`) are written as Python writes them; all else stays as it is.

    Args:
        text: any text: a name out of a file, a training document, an answer.
        keep: characters to leave alone, such as "\n\t" in a text of several lines.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )
