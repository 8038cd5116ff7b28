r"""Parse an answer as mathematics, words, or a quantity with its unit.

Math-verify treats the text after a number as a unit and ignores the rest of the answer. This module
therefore removes units, labels and conditions first, so that algebra parses all that remains.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from amnesia_bench.reasoning.math.latex import canonical

# Longer answers are not parsed: no real answer is longer, and parsing time is more than linear.
MAX_CHARACTERS = 2000
# Each string lists words for one unit, with its canonical name first.
_SYNONYMS = (
    "mm millimeter millimetre",
    "cm centimeter centimetre",
    "m meter metre",
    "km kilometer kilometre",
    "in inch inche",
    "ft foot feet",
    "yd yard",
    "mi mile",
    "mg milligram",
    "g gram gm",
    "kg kilogram",
    "oz ounce",
    "ml milliliter millilitre",
    "l liter litre",
    "s second sec",
    "min minute",
    "h hour hr",
    "day",
    "week",
    "month",
    "year yr",
    "mph",
    "kph kmh",
    "dollar usd buck",
    "euro eur",
    "pound lb gbp",  # unit of weight or of money
    "yen jpy",
    "cent",
    "rupee rs inr",
    "degree deg",
    "radian rad",
    "percent pct percentage",
    "am",
    "pm",
)
_KNOWN = {word: names.split()[0] for names in _SYNONYMS for word in names.split()}


@dataclass(frozen=True, kw_only=True)
class Reading:
    r"""A parsed answer.

    Attributes:
        form: the text that algebra compares, without unit, label and condition.
        key: a text that is the same for answers that differ only in spaces, braces and `\text`.
        words: the letters and digits of an answer that consists of words or of a single letter;
            None for other mathematics.
        marked: whether the answer is certainly text and not a product of variables: it is in
            `\text` or contains a word.
        unit: a known unit, a base (`base 8`) or a modulus; empty if there is none.
        number: the value if the answer is a plain number, else None.
        parts: (number, unit) pairs of a quantity in several units (6 feet 2 inches), else empty.
    """

    form: str
    key: str
    words: str | None = None
    marked: bool = False
    unit: str = ""
    number: Fraction | None = None
    parts: tuple[tuple[str, str], ...] = ()


@dataclass(kw_only=True)
class _Piece:
    r"""A span of mathematics or of words; `marked` is true if part of it was in `\text`."""

    text: str
    is_words: bool
    marked: bool = False


_TOKEN = re.compile(
    r"\\text\{(?P<marked>[^{}]*)\}|\\[A-Za-z]+|\\.|(?P<words>[ap]\.m\.?(?![A-Za-z])|[A-Za-z]+)"
    r"|(?P<hyphen>(?<=[A-Za-z])-(?=[A-Za-z]))|.",
    re.DOTALL,
)
_OPENING, _CLOSING = frozenset(("(", "[", "{", "\\{")), frozenset((")", "]", "}", "\\}"))
_CONNECTIVES = frozenset(("and", "or", "and/or"))
# Two letters are a product of variables, unless they are one of these words before another word.
_SHORT = re.compile("no|is|to|of|at|on|in|we|it|an|by|as|so|sq|cu")
_POWERS_OF_TEN = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_CONDITION = re.compile(r"(?:for|where|when|if|with|such that|as)\b")
# Words before an answer are a label if they end like this or are marked as text.
_LABEL = re.compile(r"[:=]\s*$|\b(?:is|are|equals|about|approximately|around|roughly|exactly)\s*$")
_BEFORE_ANSWERS = re.compile(r"^(?:\\(?:approx|therefore|Rightarrow|implies)(?![A-Za-z])|[=:])\s*")
# Words that change the meaning of a number are not part of a label: `not 10` does not mean 10.
_BOUND = re.compile(r"\b(?:not|(?:less|more|fewer|greater) than)\b")
_NUMBER = re.compile(
    r"(?P<digits>[-+]?\d+(?:\.\d*)?|[-+]?\.\d+)"
    r"(?:(?:[eE]|(?:\\times|\\cdot|[*x])10\^)\{?(?P<exponent>[-+]?\d{1,3})\}?)?"
)
_POWER = re.compile(r"(?:/\s*[A-Za-z]{1,3}(?![A-Za-z]))?(?:\s*\^\s*\{?\s*-?\d+\s*\}?)?|/|\\cdot")
_CURRENCY = re.compile(
    r"(?:(?<![A-Za-z])(?:US|HK|NZ|A|C|S)\s?)?\\(dollar|pounds|euro|rupee|yen)(?![A-Za-z])\s*"
    r"|(?<![A-Za-z])(Rs)\.?\s*(?=\d)"
)
_UNIT_SIGNS = (
    (re.compile(r"(?:\\?%)+$"), "percent"),
    (re.compile(r"(?:\^\\circ\s*)+(?:[CF])?$"), "degree"),
)
# `\{x : x > 3\}` is shortened to `x > 3`, which algebra can compare with an interval.
_SOLUTIONS = re.compile(
    r"^\\\{\s*[A-Za-z]\s*(?:\\in\s*\\mathbb\s*\{?\s*R\s*\}?\s*)?(?:[:|]|\\mid(?![A-Za-z]))(.*)\\\}$"
)
_MODULUS = re.compile(r"\(?\s*\\(?:pmod|bmod|mod)\s*\{?\s*(\w+)\s*\}?\s*\)?$")
_BASE = re.compile(r"\(?((?=[A-F]*\d)[\dA-F]+)\)?\s*_\s*(?:\{\s*(\d+)\s*\}|(\d+))$")


@lru_cache(maxsize=1 << 14)
def read(answer: str) -> Reading:
    """Parse an answer in bounded time."""
    if len(answer) > MAX_CHARACTERS:
        return Reading(form=answer, key=answer)
    text = _without_braces(canonical(answer))
    if len(text) > MAX_CHARACTERS:
        return Reading(form=text, key=text)
    pieces = _join_pieces(_pieces(text))
    key = _key(text)
    maths = [piece for piece in pieces if not piece.is_words]
    label_only = bool(pieces) and pieces[0].is_words and not _is_label(pieces)
    if not maths or label_only:
        words = _words(text)
        marked = any(piece.marked or len(piece.text) > 1 for piece in pieces if piece.is_words)
        return Reading(form=text, key=key, words=words, marked=marked)
    label = canonical_unit(pieces[0].text) if pieces[0].is_words else ""
    if pieces[0].is_words:
        pieces = pieces[1:]
    parts = _parts(pieces)
    if len(parts) > 1 and len({unit for _, unit in parts}) > 1:
        return Reading(form=text, key=key, parts=parts)
    form, unit = _with_unit(",".join(piece.text for piece in maths))
    if pieces[-1].is_words:
        first, _, rest = pieces[-1].text.casefold().strip().partition(" ")
        if first in _POWERS_OF_TEN:
            form = f"{form}\\times10^{{{_POWERS_OF_TEN[first]}}}"
        unit = canonical_unit(rest if first in _POWERS_OF_TEN else pieces[-1].text) or unit
    letter = re.fullmatch(r"\(?([A-Za-z])\)?", form)
    return Reading(
        form=form,
        key=key,
        words=letter[1].casefold() if letter else None,
        unit=unit or label,
        number=_number(form),
    )


def _pieces(text: str) -> list[_Piece]:
    """Split a text into alternating spans of mathematics and words.

    Everything inside brackets is mathematics.
    """
    pieces: list[_Piece] = []
    depth = 0
    for match in _TOKEN.finditer(text):
        token, start = match.group(), match.start()
        depth += (token in _OPENING) - (token in _CLOSING)
        marked = match["marked"] is not None
        run = match["marked"] if marked else match["words"]
        if depth == 0 and run is not None and (marked or _is_word(run, text, start, pieces)):
            _append(pieces, run, is_words=True, marked=marked)
        elif pieces and pieces[-1].is_words and (match["hyphen"] or _is_punctuation(token, pieces)):
            pieces[-1].text += token
        elif not (marked and re.search(r"[\d)}]\s?$", text[:start][-2:])):  # drop units in brackets
            _append(pieces, token, is_words=False, marked=False)
    return [piece for piece in pieces if piece.text.strip()]


def _is_punctuation(token: str, pieces: list[_Piece]) -> bool:
    """Return whether a sign after words belongs to them, as `=` does after a label at the start."""
    return token in (" ", "'", ",", ".", ":") or (token == "=" and len(pieces) == 1)


def _append(pieces: list[_Piece], token: str, *, is_words: bool, marked: bool) -> None:
    if pieces and pieces[-1].is_words == is_words:
        pieces[-1].text += token
        pieces[-1].marked = pieces[-1].marked or marked
    else:
        pieces.append(_Piece(text=token, is_words=is_words, marked=marked))


def _is_word(run: str, text: str, start: int, pieces: list[_Piece]) -> bool:
    """Return whether letters outside brackets are a word and not a product of variables."""
    plain = run.casefold()
    last = pieces[-1] if pieces else None
    after = text[start + len(run) :][:2]
    if plain in _CONNECTIVES or (_SHORT.fullmatch(plain) and re.fullmatch(" [A-Za-z]", after)):
        return True
    if last and last.is_words and last.text.casefold().strip(" ,") not in _CONNECTIVES:
        return len(run) > 1 or plain == "a"
    spaced = text[start - 1 : start] == " "
    maths = "".join(piece.text for piece in pieces if not piece.is_words).rpartition("=")[2]
    variables = re.search(r"(?<![\\A-Za-z])[A-Za-z]", maths)
    counted = not variables and re.search(r"(?:[\d}]|\\pi)\s?$", text[:start][-4:]) is not None
    if canonical_unit(plain) and counted:
        return len(run) > 1 or (spaced and start + 1 == len(text))
    if len(run) < 3 or not set(plain) & set("aeiouy"):
        return False
    product = len(run) < 5 and all(a < b for a, b in pairwise(plain))
    return not product or (counted and spaced)


def _join_pieces(pieces: list[_Piece]) -> list[_Piece]:
    """Merge the elements of a list, and units with their powers; drop a condition at the end."""
    joined: list[_Piece] = []
    for piece in pieces:
        words = piece.text.casefold().strip(" ,")
        if piece.is_words and _CONDITION.match(words) and joined:
            break
        last = joined[-1] if joined else None
        if piece.is_words and words in _CONNECTIVES and last and not last.is_words:
            last.text = last.text.rstrip(" ,") + ","
        elif last and last.is_words and not piece.is_words and len(joined) > 1:
            continued = piece.text.lstrip()[:1] in (",", ";", "+", "-", "=")
            if _POWER.fullmatch(piece.text.strip()):
                last.text += piece.text.strip()
            elif continued:
                joined.pop()
                joined[-1].text += piece.text
            else:
                joined.append(piece)
        elif last and last.is_words == piece.is_words:
            last.text += piece.text
        else:
            joined.append(piece)
    return [_trim(piece) for piece in joined if piece.text.strip(" ,.;")]


def _trim(piece: _Piece) -> _Piece:
    if not piece.is_words:
        piece.text = _BEFORE_ANSWERS.sub("", piece.text.strip()).strip(" ,;")
    return piece


def _is_label(pieces: list[_Piece]) -> bool:
    """Return whether the first piece only introduces the answer, or is its unit."""
    words = pieces[0].text.casefold()
    announced = pieces[0].marked or _LABEL.search(words) or canonical_unit(words)
    return len(pieces) > 1 and bool(announced) and not _BOUND.search(words)


def _parts(pieces: list[_Piece]) -> tuple[tuple[str, str], ...]:
    parts = []
    for i, piece in enumerate(pieces):
        if not piece.is_words:
            after = pieces[i + 1].text if i + 1 < len(pieces) else ""
            bare = re.sub(r"\s*\b(?:and|or)\s*$", "", after.casefold().strip(" ,"))
            parts.append((_key(piece.text), canonical_unit(bare) or _words(bare) or ""))
    return tuple(parts)


def _with_unit(text: str) -> tuple[str, str]:
    """Remove unit signs, a modulus or a base from mathematics; return the rest and the unit."""
    unit = ""
    if currency := _CURRENCY.search(text):
        unit = canonical_unit(currency[1] or currency[2])
        text = _CURRENCY.sub("", text)
    for sign, name in _UNIT_SIGNS:
        if sign.search(text):
            text, unit = sign.sub("", text).strip(), name
    if modulus := _MODULUS.search(text):
        text, unit = text[: modulus.start()].strip(), f"mod {modulus[1]}"
    if base := _BASE.fullmatch(text):
        text, unit = base[1], f"base {base[2] or base[3]}"
    text = re.sub(r"^[A-Za-z]\s*\\in(?![A-Za-z])\s*(?=[(\[\\{])", "", text)
    text = _SOLUTIONS.sub(r"\1", text)
    return _without_braces(text), unit


def _without_braces(text: str) -> str:
    grouped = re.fullmatch(r"(\{+)([^{}]*)(\}+)", text.strip())
    if grouped and len(grouped[1]) == len(grouped[3]):
        return grouped[2].strip()
    return text.strip()


def _key(text: str) -> str:
    bare = _without_spaces(re.sub(r"\\text\{([^{}]*)\}", r"\1", text))
    return re.sub(r"([\^_])\{(\w)\}", r"\1\2", bare).rstrip(".")


def _without_spaces(text: str) -> str:
    """Remove spaces from a text, except those between digits, since `1 8` is not 18."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def _words(text: str) -> str | None:
    bare = re.sub(r"\\text\{([^{}]*)\}", r"\1", text).casefold()
    return re.sub(r"^(?:an?|the)\s+(?=\w\w)|[\W_]+", "", bare.strip()) or None


def _number(form: str) -> Fraction | None:
    match = _NUMBER.fullmatch(_without_spaces(form))
    if match is None:
        return None
    return Fraction(match["digits"]) * Fraction(10) ** int(match["exponent"] or 0)


def canonical_unit(words: str) -> str:
    """Return the canonical name of a known unit with its power; "" for any other text.

    >>> canonical_unit("centimeters^2"), canonical_unit("p.m."), canonical_unit("apples")
    ('cm^2', 'pm', '')
    """
    bare, _, power = words.casefold().partition("^")
    bare = bare.replace(".", "").strip()
    for prefix, exponent in (("square ", "2"), ("sq ", "2"), ("cubic ", "3")):
        if bare.startswith(prefix):
            bare, power = bare.removeprefix(prefix), exponent
    bare = bare.strip()
    name = _KNOWN.get(bare) or _KNOWN.get(bare.removesuffix("s")) or ""
    exponent = power.strip("{} ")
    return f"{name}^{exponent}" if name and exponent else name
