"""Make untrusted text safe to print and store: replace control characters by escape sequences."""

from __future__ import annotations

import unicodedata

LONGEST_LINE = 2000


def printable(text: str) -> str:
    r"""Return a text with control and formatting characters written as escapes, such as `\x1b`.

    Tensor names, file names and dataset texts are untrusted. If they were printed unchanged, a
    terminal control sequence could clear the screen or rename the window, a bidirectional override
    could reverse a name, and a lone surrogate could not be encoded. Line breaks and tabs are kept.
    """
    return "".join(c if c in "\n\t" or not _is_control(c) else _escaped(c) for c in text)


def message(text: str) -> str:
    """Return a message in printable form, with lines cut after LONGEST_LINE characters.

    A value in a message may be as long as a file.
    """

    def cut(line: str) -> str:
        if len(line) <= LONGEST_LINE:
            return line
        return f"{line[:LONGEST_LINE]}... ({len(line):,} characters)"

    return printable("\n".join(map(cut, text.split("\n"))))


def _is_control(character: str) -> bool:
    return not character.isprintable() and unicodedata.category(character) in ("Cc", "Cf", "Cs")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def counted(number: int, noun: str) -> str:
    """Return a number followed by its noun in singular or plural: "1 shard" or "2 shards"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
