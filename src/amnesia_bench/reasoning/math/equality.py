r"""Decide which answers are equal: by their text, by their numbers, or by computer algebra.

Answers with the same text are equal; answers with different units, words, kinds or values differ;
math-verify decides about all other pairs. 50 \% equals 50 and not 0.5, as in MATH's own grader.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction
from typing import Any

from amnesia_bench.reasoning.math.pool import ComparisonPool, Failure
from amnesia_bench.reasoning.math.reading import MAX_CHARACTERS, Reading, read
from amnesia_bench.records.evaluation import Outcome

_RELATIVE_ERROR = Fraction(1, 2_000_000)


def glance(gold: str, answer: str) -> bool | None:
    """Return whether two answers are equal, or None if only computer algebra can decide."""
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
    """Return whether an answer is an unordered list or set of several elements."""
    return _kind(read(answer).form) in ("list", "set")


def forms_to_compare(first: str, second: str) -> tuple[str, str]:
    """Return the forms that algebra compares; a list becomes a tuple if the other is a tuple."""
    forms = read(first).form, read(second).form
    kinds = tuple(map(_kind, forms))
    if set(kinds) == {"list", "tuple"}:
        return (
            f"({forms[0]})" if kinds[0] == "list" else forms[0],
            f"({forms[1]})" if kinds[1] == "list" else forms[1],
        )
    return forms


def _of_other_kinds(first: Reading, second: Reading) -> bool:
    """Return whether one answer is a set and the other a tuple, or only one is an equation."""
    if {_kind(first.form), _kind(second.form)} == {"set", "tuple"}:
        return True
    forms = first.form, second.form
    return any(map(_is_equation, forms)) and not all("=" in form for form in forms)


def _is_equation(form: str) -> bool:
    """Return whether an answer is an equation, for example of a plane: `5x-7y+11z+4=0`."""
    left, equals, right = form.partition("=")
    coefficients = re.search(r"(?<![\^_\d{])\d", left)
    return bool(equals and right.strip() == "0" and coefficients and re.search("[A-Za-z]", left))


def _kind(form: str) -> str | None:
    """Return `list`, `set` or `tuple` if an answer has several elements, else None."""
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
    # Math-verify rounds to six digits. The tolerance is also relative, since otherwise all small
    # constants would equal zero.
    return abs(gold - answer) <= _RELATIVE_ERROR * min(Fraction(1), abs(gold))


# Two exact values certainly differ if their relative distance exceeds this bound, which is far
# larger than the error of rounding to 15 digits.
_RELATIVE = Decimal("1e-9")
# The same bound for decimal fractions, far above math-verify's rounding to six digits. Algebra
# decides about closer pairs.
_ROUNDED = Decimal("1e-5")

# With this context, nearly all exponents are representable and no operation raises an exception.
_CONTEXT = Context(prec=28, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])

Obstacle = tuple[Outcome, str]


class Equality:
    """Compares a collection of answers with as little computer algebra as possible.

    Each distinct answer is parsed once, to extract its numbers. Most unequal pairs differ in these
    and need no algebra, which matters because 16 answers to a problem can form 120 pairs.
    """

    def __init__(self, pool: ComparisonPool, answers: Iterable[str]) -> None:
        self._pool = pool
        readings = {reading.form: reading for reading in map(read, answers)}
        self._numbers: dict[str, Any] = {}
        parsed = []
        for form, reading in readings.items():
            if reading.number is not None:
                self._numbers[form] = _numbers_of(form, reading.number)
            elif len(form) <= MAX_CHARACTERS:
                parsed.append(form)
        replies = pool.run([("numbers", form) for form in parsed])
        self._numbers |= zip(parsed, replies, strict=True)

    def known(self, first: str, second: str) -> bool | None:
        """Return whether two answers are equal, or None if only algebra can decide."""
        equal = glance(first, second)
        numbers = [self._numbers.get(read(answer).form) for answer in (first, second)]
        return False if equal is None and _differ(*numbers) else equal

    def obstacle(self, answer: str) -> Obstacle | None:
        """Return why algebra cannot compare an answer, or None if it can."""
        form = read(answer).form
        if form not in self._numbers:
            return Outcome.WRONG, f"longer than {MAX_CHARACTERS} characters"
        return obstacle_of(self._numbers[form])

    def ask(self, how: str, pairs: Sequence[tuple[str, str]]) -> list[Any]:
        """Compare pairs by algebra and return the replies; `how` is `verify` or `same`."""
        return self._pool.run([(how, *forms_to_compare(*pair)) for pair in pairs])


def obstacle_of(reply: Any) -> Obstacle | None:
    """Return the outcome and detail if a comparison failed, or None if the reply is a result."""
    if reply is Failure.TIME_LIMIT:
        return Outcome.TIME_LIMIT, "judging it ran out of time"
    if reply is Failure.DIED:
        return Outcome.WRONG, "judging it ran out of memory or stack"
    if isinstance(reply, dict) and "error" in reply:
        return Outcome.WRONG, f"cannot be compared ({reply['error']})"
    return None


def _differ(first: Any, second: Any) -> bool:
    """Return whether two answers certainly differ because their numbers differ."""
    if not all(isinstance(reply, dict) and "values" in reply for reply in (first, second)):
        return False
    left, right = first["values"], second["values"]
    if len(left) != len(right):
        return True
    exact = first["exact"] and second["exact"]
    return any(
        _numbers_differ(_CONTEXT.create_decimal(a), _CONTEXT.create_decimal(b), exact=exact)
        for pair in zip(left, right, strict=True)
        for a, b in zip(*pair, strict=True)
    )


def _numbers_differ(a: Decimal, b: Decimal, *, exact: bool) -> bool:
    if not (a.is_finite() and b.is_finite()):
        return not (a.is_nan() or b.is_nan()) and a != b  # NaN if the exponent is too long to parse
    largest = _CONTEXT.max_mag(a, b).copy_abs()
    distance = _CONTEXT.subtract(a, b).copy_abs()
    allowed = _RELATIVE if exact else _ROUNDED
    scale = largest if exact else _CONTEXT.add(1, largest)
    return distance > _CONTEXT.multiply(allowed, scale)


def _numbers_of(form: str, number: Fraction) -> dict[str, Any]:
    """Return what the request `numbers` would reply for a plain number, without a worker."""
    value = _CONTEXT.divide(Decimal(number.numerator), Decimal(number.denominator))
    return {"exact": form.isdecimal(), "values": [[str(value), "0"]]}
