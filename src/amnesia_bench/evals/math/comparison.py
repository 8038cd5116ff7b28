r"""Equal at a glance: what needs no computer algebra to be told equal, or different.

Decided here, in this order: equal strings, texts, plain numbers. All else is math-verify's.
50 \% is 50, as in MATH's own grader; it is not 0.5.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

# Nobody's answer is longer, and parsing takes more than linear time.
MAX_CHARACTERS = 2000

_LAYOUT = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|displaystyle|limits)(?![A-Za-z])"
    r"|\\(?:quad|qquad|enspace|thinspace)(?![A-Za-z])|\\[,!;: ]|~|\s"
)
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|mathit)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z0-9 .,'()\-]*|\([A-Za-z]\)")
_NUMBER = re.compile(
    r"(?P<digits>[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|[-+]?\.\d+)"
    r"(?:(?:[eE]|\\(?:times|cdot)10\^)\{?(?P<exponent>[-+]?\d{1,3})\}?)?"
)
_UNIT = re.compile(r"(?:\\?%|\^\{?\\circ\}?|\\degree|°)+$")
_RELATIVE_ERROR = Fraction(1, 2_000_000)


def glance(gold: str, answer: str) -> bool | None:
    """Return whether two answers are equal, or None where only computer algebra can tell."""
    if plain(gold) == plain(answer):
        return True
    if (as_text := _same_text(gold, answer)) is not None:
        return as_text
    numbers = number(gold), number(answer)
    if numbers[0] is not None and numbers[1] is not None:
        return _same_number(numbers[0], numbers[1])
    return None


def number(answer: str) -> Fraction | None:
    r"""Read a plain number, such as `1,234`, `\$5`, `-.5`, `50\%`, `90^\circ` or `4.5e33`."""
    bare = plain(answer).replace("{,}", ",").replace("\\$", "").replace("$", "")
    match = _NUMBER.fullmatch(_UNIT.sub("", bare).removesuffix("."))
    if match is None:
        return None
    value = Fraction(match["digits"].replace(",", ""))
    return value * Fraction(10) ** int(match["exponent"] or 0)


@lru_cache(maxsize=1 << 14)
def plain(answer: str) -> str:
    """Return an answer without what only its looks depend on."""
    bare = _LAYOUT.sub("", _without_wrapper(answer))
    bare = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", bare)
    return bare.replace("\\varnothing", "\\emptyset").replace("\\infin", "\\inf").rstrip(".")


def _without_wrapper(answer: str) -> str:
    """Return an answer without the dollars and braces around it, boxes and bold print."""
    plain = re.sub(
        r"\\(?:boxed|fbox|framebox|mathbf|boldsymbol|bm)(?![A-Za-z])", "", answer
    ).strip()
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if plain.startswith(left) and plain.endswith(right) and len(plain) > len(left + right):
            plain = plain[len(left) : -len(right)].strip()
    grouped = re.fullmatch(r"(\{+)([^{}]*)(\}+)", plain)
    if grouped and len(grouped[1]) == len(grouped[3]):
        return grouped[2].strip()
    return plain


def _same_text(gold: str, answer: str) -> bool | None:
    """Compare words and letters of a choice; None unless both are, and one says it is text."""
    words = [_words(gold), _words(answer)]
    if words[0] is None or words[1] is None:
        return None
    if words[0] == words[1]:
        return True
    marked = any(_TEXT.search(item) for item in (gold, answer))
    return False if marked else None


def _words(answer: str) -> str | None:
    text = _TEXT.sub(r"\1", _without_wrapper(answer)).replace("\\ ", " ").replace("~", " ")
    text = re.sub(r"\s+", " ", text).strip().rstrip(".")
    if not _WORDS.fullmatch(text):
        return None
    if choice := re.fullmatch(r"\(?([A-Za-z])\)?", text):
        return choice.group(1).casefold()
    return text.casefold()


def _same_number(gold: Fraction, answer: Fraction) -> bool:
    if gold.denominator == answer.denominator == 1:
        return gold == answer
    # Six digits, as math-verify rounds; relative too, or all small constants would be zero.
    return abs(gold - answer) <= _RELATIVE_ERROR * min(Fraction(1), abs(gold))
