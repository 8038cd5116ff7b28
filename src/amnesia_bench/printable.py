"""Make foreign text safe to print and to store: control characters are written as escapes."""

from __future__ import annotations

import unicodedata

LONGEST_LINE = 2000


def printable(text: str) -> str:
    r"""Return a text with its control and formatting characters as escapes, such as `\x1b`.

    Names of tensors and files, and texts of datasets, are untrusted: printed unchanged, an escape
    sequence could clear the screen or rename the window, and a bidirectional override could
    reverse a name. A lone surrogate could not be encoded at all. Line breaks and tabs stay.
    """
    return "".join(c if c in "\n\t" or not _is_control(c) else _escaped(c) for c in text)


def message(text: str) -> str:
    """Return a message in printable form, its lines cut: a value in it may be a whole file long."""

    def cut(line: str) -> str:
        if len(line) <= LONGEST_LINE:
            return line
        return f"{line[:LONGEST_LINE]}... ({len(line):,} characters)"

    return printable("\n".join(map(cut, text.split("\n"))))


def _is_control(character: str) -> bool:
    return not character.isprintable() and unicodedata.category(character) in ("Cc", "Cf", "Cs")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
