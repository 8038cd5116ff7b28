"""Which answers are equal: at a glance, by their numbers, and else by computer algebra."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from amnesia_bench.evals.math.comparison import MAX_CHARACTERS, glance, number, plain
from amnesia_bench.evals.math.pool import ComparisonPool, Failure
from amnesia_bench.records.evaluation import Outcome

# Far above math-verify's rounding to six digits: within this distance it is asked.
_DIFFERENT = 1e-5

Obstacle = tuple[Outcome, str]


class Equality:
    """What is known of some answers.

    Each distinct answer is parsed once, for the numbers it is made of. Most pairs differ in
    those, and need no algebra: 16 answers to a problem can be 120 pairs.
    """

    def __init__(self, pool: ComparisonPool, answers: Iterable[str]) -> None:
        self._pool = pool
        # What differs in its looks alone is one answer, in the form that was seen first.
        self._forms: dict[str, str] = {}
        for answer in answers:
            self._forms.setdefault(plain(answer), answer)
        self._numbers: dict[str, Any] = {}
        parsed = []
        for form in self._forms.values():
            if (value := number(form)) is not None:
                self._numbers[form] = [[_float(value), 0.0]]
            elif len(form) <= MAX_CHARACTERS:
                parsed.append(form)
        replies = pool.run([("numbers", form) for form in parsed])
        self._numbers |= zip(parsed, replies, strict=True)

    def known(self, first: str, second: str) -> bool | None:
        """Return whether two answers are equal, or None where only algebra can tell."""
        equal = glance(first, second)
        numbers = self._numbers.get(self._form(first)), self._numbers.get(self._form(second))
        return False if equal is None and _differ(*numbers) else equal

    def obstacle(self, answer: str) -> Obstacle | None:
        """Return what keeps an answer from being compared by algebra; None when nothing does."""
        form = self._form(answer)
        if form not in self._numbers:
            return Outcome.WRONG, f"longer than {MAX_CHARACTERS} characters"
        return obstacle_of(self._numbers[form])

    def ask(self, how: str, pairs: Sequence[tuple[str, str]]) -> list[Any]:
        """Compare pairs by algebra; `how` is a request of `worker`."""
        return self._pool.run([(how, self._form(a), self._form(b)) for a, b in pairs])

    def _form(self, answer: str) -> str:
        return self._forms[plain(answer)]


def obstacle_of(reply: Any) -> Obstacle | None:
    """Return what a reply says went wrong; None of a reply that is an answer."""
    if reply is Failure.TIME_LIMIT:
        return Outcome.TIME_LIMIT, "the comparison ran out of time"
    if reply is Failure.DIED:
        return Outcome.WRONG, "the comparison ran out of memory or stack"
    if isinstance(reply, dict):
        return Outcome.WRONG, f"cannot be compared ({reply['error']})"
    return None


def _differ(first: Any, second: Any) -> bool:
    """Return whether numbers say for sure that two answers differ."""
    if not isinstance(first, list) or not isinstance(second, list):
        return False
    if len(first) != len(second):
        return True
    return any(
        _apart(a, b)
        for left, right in zip(first, second, strict=True)
        for a, b in zip(left, right, strict=True)
    )


def _apart(a: float, b: float) -> bool:
    if not (math.isfinite(a) and math.isfinite(b)):
        # Too large for a float, and infinite, look the same.
        return math.isfinite(a) != math.isfinite(b) or a * b < 0
    return abs(a - b) > _DIFFERENT * (1 + max(abs(a), abs(b)))


def _float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)
