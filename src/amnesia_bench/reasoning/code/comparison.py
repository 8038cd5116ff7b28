"""Whether an answer is the expected one. Answers come from hostile programs.

By default as LiveCodeBench's checker judges it: lcb_runner/evaluation/testing_util.py at 28fef95.
With a tolerance, floats may be a little off, and white space between words makes no difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

# What the problems themselves mostly ask for: AtCoder's an absolute or relative error of 1e-6,
# LeetCode's 1e-5.
PRINTED_TOLERANCE = 1e-6
RETURNED_TOLERANCE = 1e-5
_LONGEST_RATIO = 700  # characters; in hex a float's integers have at most 270


def printed_difference(printed: str, expected: str, tolerance: float | None = None) -> str | None:
    """Return how a printed text differs from the expected one, None if it does not.

    Line by line without the white space around them, then number by number, exactly. With a
    tolerance word by word: a word that is expected with a decimal point or an exponent may be off
    by so much, absolutely or relative to itself.
    """
    printed, expected = printed.strip(), expected.strip()
    counts = printed.count("\n") + 1, expected.count("\n") + 1
    if counts[0] != counts[1]:
        return f"{counts[0]} lines, expected {counts[1]}"
    lines = zip(_lines(printed), _lines(expected), strict=True)
    for number, (line, wanted) in enumerate(lines, start=1):
        if line.strip() != wanted.strip() and not _same_words(line, wanted.split(), tolerance):
            return f"line {number}"
    return None


def _lines(text: str) -> Iterator[str]:
    """The lines one by one: a list of millions of empty ones would take fifty times the text."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _same_words(line: str, wanted: list[str], tolerance: float | None) -> bool:
    words = line.split(maxsplit=len(wanted))  # no more of a long line than is needed
    if tolerance is not None:
        return len(words) == len(wanted) and all(
            word == other or _same_number(word, other) or _close(word, other, tolerance)
            for word, other in zip(words, wanted, strict=True)
        )
    try:
        # A signalling NaN cannot even be compared.
        return [*map(Decimal, words)] == [*map(Decimal, wanted)]
    except InvalidOperation:
        return False


def _same_number(word: str, wanted: str) -> bool:
    try:
        return Decimal(word) == Decimal(wanted)
    except InvalidOperation:
        return False


def _close(word: str, wanted: str, tolerance: float) -> bool:
    if not any(mark in wanted for mark in ".eE"):
        return False  # an integer is exact
    try:
        return math.isclose(float(word), float(wanted), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:
        return False


def returned_equals(returned: Any, expected: Any, tolerance: float | None = None) -> bool:
    """Return whether what a function returned equals the expected JSON value, as Python's == does.

    Args:
        returned: as the driver's `plain` writes it. Nothing of it is built or converted: a
            hostile answer costs no more than a walk over the expected value.
        expected: what JSON holds.
        tolerance: how far a number may be off where a float is expected; None for nothing.
    """
    if isinstance(expected, list):
        return (
            isinstance(returned, list)
            and len(returned) == len(expected)
            and all(
                returned_equals(item, wanted, tolerance)
                for item, wanted in zip(returned, expected, strict=True)
            )
        )
    if isinstance(expected, dict):
        return _same_dict(returned, expected, tolerance)
    if tolerance is not None and isinstance(expected, float):
        number = _as_float(returned)
        return math.isclose(number, expected, rel_tol=tolerance, abs_tol=tolerance)
    if isinstance(returned, dict):
        return bool(returned == _as_ratio(expected))
    return not isinstance(returned, list) and bool(returned == expected)


def _same_dict(returned: Any, expected: dict[str, Any], tolerance: float | None) -> bool:
    if not isinstance(returned, dict) or not isinstance(returned.get("dict"), list):
        return False
    left = dict(expected)
    for pair in returned["dict"]:
        match pair:
            case [str(key), item] if key in left and returned_equals(item, left[key], tolerance):
                del left[key]
            case _:
                return False
    return not left


def _as_float(returned: Any) -> float:
    """Return a number as the driver writes it; NaN for all else."""
    try:
        match returned:
            case int() | float():
                return float(returned)
            case {"ratio": [str(above), str(below)]} if len(above) + len(below) <= _LONGEST_RATIO:
                return int(above, 16) / int(below, 16)
    except (ValueError, ArithmeticError):
        pass
    return math.nan


def _as_ratio(number: Any) -> dict[str, list[str]] | None:
    """Return a number as the driver writes large integers, Fractions and Decimals; else None."""
    try:
        return {"ratio": [hex(part) for part in number.as_integer_ratio()]}
    except (AttributeError, OverflowError, ValueError):
        return None
