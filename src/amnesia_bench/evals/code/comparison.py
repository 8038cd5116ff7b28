"""Whether an answer is the expected one, as LiveCodeBench's checker judges it.

Source: lcb_runner/evaluation/testing_util.py at 28fef95. Answers come from hostile programs.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any


def printed_difference(printed: str, expected: str) -> str | None:
    """Return how a printed text differs from the expected one, None if it does not.

    Line by line without the white space around them, then number by number, exactly.
    """
    printed, expected = printed.strip(), expected.strip()
    counts = printed.count("\n") + 1, expected.count("\n") + 1
    if counts[0] != counts[1]:
        return f"{counts[0]} lines, expected {counts[1]}"
    lines = zip(printed.split("\n"), expected.split("\n"), strict=True)
    for number, (line, wanted) in enumerate(lines, start=1):
        if line.strip() != wanted.strip() and not _same_numbers(line, wanted.split()):
            return f"line {number}"
    return None


def _same_numbers(line: str, wanted: list[str]) -> bool:
    numbers = line.split(maxsplit=len(wanted))  # no more of a long line than is needed
    try:
        # A signalling NaN cannot even be compared.
        return [*map(Decimal, numbers)] == [*map(Decimal, wanted)]
    except InvalidOperation:
        return False


def returned_equals(returned: Any, expected: Any) -> bool:
    """Return whether what a function returned equals the expected JSON value, as Python's == does.

    Args:
        returned: as the driver's `plain` writes it. Nothing of it is built or converted: a
            hostile answer costs no more than a walk over the expected value.
        expected: what JSON holds.
    """
    if isinstance(expected, list):
        return (
            isinstance(returned, list)
            and len(returned) == len(expected)
            and all(map(returned_equals, returned, expected))
        )
    if isinstance(expected, dict):
        return _same_dict(returned, expected)
    if isinstance(returned, dict):
        return bool(returned == _as_ratio(expected))
    return not isinstance(returned, list) and bool(returned == expected)


def _same_dict(returned: Any, expected: dict[str, Any]) -> bool:
    if not isinstance(returned, dict) or not isinstance(returned.get("dict"), list):
        return False
    left = dict(expected)
    for pair in returned["dict"]:
        match pair:
            case [str(key), item] if key in left and returned_equals(item, left[key]):
                del left[key]
            case _:
                return False
    return not left


def _as_ratio(number: Any) -> dict[str, list[str]] | None:
    """Return a number as the driver writes large integers, Fractions and Decimals; else None."""
    try:
        return {"ratio": [hex(part) for part in number.as_integer_ratio()]}
    except (AttributeError, OverflowError, ValueError):
        return None
