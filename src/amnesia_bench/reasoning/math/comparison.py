r"""Equal at a glance: what needs no computer algebra to be told equal, or different.

In this order: written the same, so equal; of other units, words, kinds or values, so different for
sure; and all else is math-verify's to say. 50 \% is 50, as in MATH's own grader; it is not 0.5.
"""

from __future__ import annotations

import re
from fractions import Fraction

from amnesia_bench.reasoning.math.reading import Reading, read

_RELATIVE_ERROR = Fraction(1, 2_000_000)


def glance(gold: str, answer: str) -> bool | None:
    """Return whether two answers are equal, or None where only computer algebra can tell."""
    first, second = read(gold), read(answer)
    if first.key == second.key:
        return True
    if first.parts or second.parts:
        return first.parts == second.parts
    if first.unit and second.unit and first.unit != second.unit:
        return False
    if first.words is not None and second.words is not None:
        if first.words == second.words:
            return True
        if first.marked or second.marked:
            return False
    if first.form == second.form:
        return True
    if first.number is not None and second.number is not None:
        return _same_number(first.number, second.number)
    return False if _of_other_kinds(first, second) else None


def is_list(answer: str) -> bool:
    """Return whether an answer has several elements in no order."""
    return _kind(read(answer).form) in ("list", "set")


def forms_to_compare(first: str, second: str) -> tuple[str, str]:
    """Return what algebra compares of two answers; a list is a tuple where the other is one."""
    forms = read(first).form, read(second).form
    kinds = tuple(map(_kind, forms))
    if set(kinds) == {"list", "tuple"}:
        return (
            f"({forms[0]})" if kinds[0] == "list" else forms[0],
            f"({forms[1]})" if kinds[1] == "list" else forms[1],
        )
    return forms


def _of_other_kinds(first: Reading, second: Reading) -> bool:
    """Return whether one is a set and the other a tuple, or only one an equation."""
    if {_kind(first.form), _kind(second.form)} == {"set", "tuple"}:
        return True
    forms = first.form, second.form
    return any(map(_is_equation, forms)) and not all("=" in form for form in forms)


def _is_equation(form: str) -> bool:
    """Return whether an equation is itself the answer, as that of a plane: `5x-7y+11z+4=0`."""
    left, equals, right = form.partition("=")
    coefficients = re.search(r"(?<![\^_\d{])\d", left)
    return bool(equals and right.strip() == "0" and coefficients and re.search("[A-Za-z]", left))


def _kind(form: str) -> str | None:
    """Return `list`, `set` or `tuple` of several elements, by the brackets around them."""
    depth, lowest, commas = 0, len(form), set()
    for token in re.findall(r"\\[A-Za-z]+|\\.|.", form, re.DOTALL):
        if token in ("(", "[", "{", "\\{"):
            depth += 1
        elif token in (")", "]", "}", "\\}"):
            depth -= 1
        else:
            lowest = min(lowest, depth)
            if token == ",":
                commas.add(depth)
    if 0 in commas:
        return "list"
    if lowest != 1 or 1 not in commas:
        return None
    if form.startswith("\\{") and form.endswith("\\}"):
        return "set"
    return "tuple" if form.startswith("(") and form.endswith(")") else None


def _same_number(gold: Fraction, answer: Fraction) -> bool:
    if gold.denominator == answer.denominator == 1:
        return gold == answer
    # Six digits, as math-verify rounds; relative too, or all small constants would be zero.
    return abs(gold - answer) <= _RELATIVE_ERROR * min(Fraction(1), abs(gold))
