"""Which answers are equal: at a glance, by their numbers, and else by computer algebra."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction
from typing import Any

from amnesia_bench.reasoning.math.comparison import forms_to_compare, glance
from amnesia_bench.reasoning.math.pool import ComparisonPool, Failure
from amnesia_bench.reasoning.math.reading import MAX_CHARACTERS, read
from amnesia_bench.records.evaluation import Outcome

# Exact values differ beyond it; it is far above what 15 digits are rounded to.
_RELATIVE = Decimal("1e-9")
# With a decimal fraction, far above math-verify's rounding to six digits: within it, it is asked.
_ROUNDED = Decimal("1e-5")

# No exponent is too large, and no comparison raises.
_CONTEXT = Context(prec=28, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])

Obstacle = tuple[Outcome, str]


class Equality:
    """What is known of some answers.

    Each distinct answer is parsed once, for the numbers it is made of. Most pairs differ in
    those, and need no algebra: 16 answers to a problem can be 120 pairs.
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
        """Return whether two answers are equal, or None where only algebra can tell."""
        equal = glance(first, second)
        numbers = [self._numbers.get(read(answer).form) for answer in (first, second)]
        return False if equal is None and _differ(*numbers) else equal

    def obstacle(self, answer: str) -> Obstacle | None:
        """Return what keeps an answer from being compared by algebra; None when nothing does."""
        form = read(answer).form
        if form not in self._numbers:
            return Outcome.WRONG, f"longer than {MAX_CHARACTERS} characters"
        return obstacle_of(self._numbers[form])

    def ask(self, how: str, pairs: Sequence[tuple[str, str]]) -> list[Any]:
        """Compare pairs by algebra; `how` is a request of `worker`."""
        return self._pool.run([(how, *forms_to_compare(*pair)) for pair in pairs])


def obstacle_of(reply: Any) -> Obstacle | None:
    """Return what a reply says went wrong; None of a reply that is an answer."""
    if reply is Failure.TIME_LIMIT:
        return Outcome.TIME_LIMIT, "judging it ran out of time"
    if reply is Failure.DIED:
        return Outcome.WRONG, "judging it ran out of memory or stack"
    if isinstance(reply, dict) and "error" in reply:
        return Outcome.WRONG, f"cannot be compared ({reply['error']})"
    return None


def _differ(first: Any, second: Any) -> bool:
    """Return whether numbers say for sure that two answers differ."""
    if not all(isinstance(reply, dict) and "values" in reply for reply in (first, second)):
        return False
    left, right = first["values"], second["values"]
    if len(left) != len(right):
        return True
    exact = first["exact"] and second["exact"]
    return any(
        _apart(_CONTEXT.create_decimal(a), _CONTEXT.create_decimal(b), exact=exact)
        for pair in zip(left, right, strict=True)
        for a, b in zip(*pair, strict=True)
    )


def _apart(a: Decimal, b: Decimal, *, exact: bool) -> bool:
    if not (a.is_finite() and b.is_finite()):
        return not (a.is_nan() or b.is_nan()) and a != b  # NaN: the exponent has too many digits
    largest = _CONTEXT.max_mag(a, b).copy_abs()
    distance = _CONTEXT.subtract(a, b).copy_abs()
    allowed = _RELATIVE if exact else _ROUNDED
    scale = largest if exact else _CONTEXT.add(1, largest)
    return distance > _CONTEXT.multiply(allowed, scale)


def _numbers_of(form: str, number: Fraction) -> dict[str, Any]:
    """Return what the request `numbers` replies of a plain number."""
    value = _CONTEXT.divide(Decimal(number.numerator), Decimal(number.denominator))
    return {"exact": form.isdecimal(), "values": [[str(value), "0"]]}
