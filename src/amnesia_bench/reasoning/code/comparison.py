"""Compare a program's output with the expected output; the program may be hostile.

The default rules are those of LiveCodeBench's checker (lcb_runner/evaluation/testing_util.py at
28fef95). With a tolerance, floats may differ slightly, and white space between words is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

# Absolute or relative errors that most problem statements allow: 1e-6 for the printed output of
# AtCoder problems, 1e-5 for the returned values of LeetCode problems.
PRINTED_TOLERANCE = 1e-6
RETURNED_TOLERANCE = 1e-5
_LONGEST_RATIO = 700  # in characters; the hex integer ratio of a float has at most 270


def printed_difference(printed: str, expected: str, tolerance: float | None = None) -> str | None:
    """Return how a printed text differs from the expected one, or None if they agree.

    Two lines agree if they are equal without surrounding white space, or if all their words are
    numbers with exactly equal values. With a tolerance, lines are compared word by word: if an
    expected word has a decimal point or an exponent, the absolute or relative error of the printed
    word may be up to the tolerance.
    """
    printed, expected = printed.strip(), expected.strip()
    counts = printed.count("\n") + 1, expected.count("\n") + 1
    if counts[0] != counts[1]:
        return f"{counts[0]} lines, expected {counts[1]}"
    lines = zip(_lines(printed), _lines(expected), strict=True)
    for number, (line, reference) in enumerate(lines, start=1):
        same_text = line.strip() == reference.strip()
        if not same_text and not _same_words(line, reference.split(), tolerance):
            return f"line {number}"
    return None


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a text one by one.

    A list of millions of empty lines would need 50 times the memory of the text.
    """
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _same_words(line: str, expected: list[str], tolerance: float | None) -> bool:
    words = line.split(maxsplit=len(expected))  # leaves the excess of a long line unsplit
    if tolerance is not None:
        return len(words) == len(expected) and all(
            word == other or _same_number(word, other) or _close(word, other, tolerance)
            for word, other in zip(words, expected, strict=True)
        )
    try:
        # Comparing a signalling NaN raises InvalidOperation.
        return [*map(Decimal, words)] == [*map(Decimal, expected)]
    except InvalidOperation:
        return False


def _same_number(word: str, expected: str) -> bool:
    try:
        return Decimal(word) == Decimal(expected)
    except InvalidOperation:
        return False


def _close(word: str, expected: str, tolerance: float) -> bool:
    if not any(mark in expected for mark in ".eE"):
        return False  # expected integers must be matched exactly
    try:
        return math.isclose(float(word), float(expected), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:
        return False


def returned_equals(returned: Any, expected: Any, tolerance: float | None = None) -> bool:
    """Return whether a function's result equals the expected JSON value, as `==` does in Python.

    Args:
        returned: the result in the format of the driver's `json_value`. It is compared without
            conversion, so the cost for a hostile answer is bounded by the size of `expected`.
        expected: a JSON value.
        tolerance: maximum absolute or relative error where a float is expected; None requires
            exact equality.
    """
    if isinstance(expected, list):
        return (
            isinstance(returned, list)
            and len(returned) == len(expected)
            and all(
                returned_equals(item, expected_item, tolerance)
                for item, expected_item in zip(returned, expected, strict=True)
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
    rest = dict(expected)
    for pair in returned["dict"]:
        match pair:
            case [str(key), item] if key in rest and returned_equals(item, rest[key], tolerance):
                del rest[key]
            case _:
                return False
    return not rest


def _as_float(returned: Any) -> float:
    """Convert a number in the driver's format to a float; return NaN for any other value."""
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
    """Convert a number to the driver's format of large integers, Fractions and Decimals.

    Return None if it has no such format.
    """
    try:
        return {"ratio": [hex(part) for part in number.as_integer_ratio()]}
    except (AttributeError, OverflowError, ValueError):
        return None
