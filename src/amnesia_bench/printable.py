"""Texts of others, made safe to print and to store: what a terminal would act on is spelled out."""

from __future__ import annotations

import unicodedata

LONGEST_LINE = 2000


def printable(text: str) -> str:
    r"""Return a text with its control and formatting characters spelled out, such as `\x1b`.

    Names of tensors and files, and texts of data sets, come from strangers: sent as they are, an
    escape sequence in one could clear the screen or rename the window, and a bidirectional
    override could turn a name around. Half of a surrogate pair could not be written at all. Line
    breaks and tabs stay.
    """
    return "".join(c if c in "\n\t" or not _is_control(c) else _spelled(c) for c in text)


def message(text: str) -> str:
    """Return a message as it is printed: one value in it may be as long as the file it is from."""

    def cut(line: str) -> str:
        if len(line) <= LONGEST_LINE:
            return line
        return f"{line[:LONGEST_LINE]}... ({len(line):,} characters)"

    return printable("\n".join(map(cut, text.split("\n"))))


def _is_control(character: str) -> bool:
    return not character.isprintable() and unicodedata.category(character) in ("Cc", "Cf", "Cs")


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
