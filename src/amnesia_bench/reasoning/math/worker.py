"""A process that compares answers by computer algebra, one line of JSON each way.

`serve` is the loop of any such process.

The parent closes its end when it is done, or dies: either ends this process. An answer that takes
more CPU time than allowed ends it too, by a signal of the kernel's that no code here can miss or
catch: math-verify's own time limits are signal handlers, which wait for long operations to end.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import sys
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

MEMORY_BYTES = 2 << 30
READY = "ready"
_VARIABLE = re.compile(
    "(?:[a-z]|alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|sigma"
    "|tau|upsilon|phi|chi|psi|omega)(?:_.*)?",
    re.IGNORECASE,
)
_MIN_BITS = 40


def answer_requests(
    seconds: float,
    memory_bytes: int,
    prepare: Callable[[], object],
    answer: Callable[[list[str]], Any],
) -> None:
    """Answer requests until the parent closes its end.

    Args:
        seconds: CPU time per request; taking more ends the process.
        memory_bytes: how much address space there is.
        prepare: loads what is slow to load, before the first request and off its clock.
        answer: returns the reply to a request, as JSON can write it; what it raises is a reply too.
    """
    # Both are inherited: a parent that ignores the signal would switch the time limit off.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no reply
    prepare()
    _send(replies, READY)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            reply = answer(json.loads(line))
        except Exception as error:  # whatever a hostile answer makes of a parser
            reply = {"error": type(error).__name__}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(replies, reply)


def _load() -> None:
    import math_verify  # noqa: F401


def _answer(request: list[str]) -> Any:
    match request:
        case ["verify", gold, answer]:
            return _verify(gold, answer)
        case ["same", first, second]:
            return _verify(first, second) or _verify(second, first)
        case ["numbers", answer]:
            return numbers(_parse(answer))
        case ["find", text]:
            return _find(text)
    raise ValueError(f"unknown request {request[0]}")


def _verify(gold: str, answer: str) -> bool:
    from math_verify import verify

    golds, answers = _parse(gold), _parse(answer)
    if any(map(_is_set, golds)) or any(map(_is_set, answers)):
        golds, answers = _as_sets(golds), _as_sets(answers)
    return bool(verify(golds, answers, float_rounding=6, strict=True, timeout_seconds=None))


def _is_set(value: Any) -> bool:
    import sympy  # type: ignore[import-untyped]

    return isinstance(value, sympy.Interval | sympy.Union | sympy.Complement)


def _as_sets(parsed: list[Any]) -> list[Any]:
    """Return inequalities as the sets of their solutions, for a comparison with such a set."""
    return [_as_set(value) for value in parsed]


def _as_set(value: Any) -> Any:
    import sympy
    from math_verify.grader import unwrap_fcs

    try:
        if isinstance(value, sympy.FiniteSet) and value.args:
            solutions = [unwrap_fcs(item).as_set() for item in value.args]
            both = sympy.Intersection(*solutions)
            return sympy.Union(*solutions) if both.is_empty else both
        return value if isinstance(value, str | sympy.Set) else unwrap_fcs(value).as_set()
    except Exception:  # not inequalities in one variable
        return value


def numbers(parsed: list[Any]) -> dict[str, Any] | None:
    """Return the numbers that a parsed answer is made of, each as real and imaginary part.

    They are those of an expression, a set, an interval, a tuple or a matrix, sorted, with a fixed
    value for every symbol; `exact` says that there is no decimal fraction among them. None of
    anything else, of relations above all, as `x=5` may equal 5, and of what cannot be evaluated to
    all its digits.
    """
    import sympy

    values = [item for item in parsed if not isinstance(item, str)]
    if len(values) != 1:
        return None
    try:
        found = sorted(map(_parts, _leaves(values[0])), key=_rounded)
    except Exception:  # what sympy cannot do is no verdict: algebra is asked
        return None
    exact = not (hasattr(values[0], "has") and values[0].has(sympy.Float))
    return {"exact": exact, "values": found}


def _leaves(value: Any) -> list[Any]:
    import sympy

    if isinstance(value, sympy.Interval):
        return [*_leaves(value.start), *_leaves(value.end)]
    if isinstance(value, sympy.FiniteSet | sympy.Union | sympy.Tuple):
        return [leaf for item in value.args for leaf in _leaves(item)]
    if isinstance(value, tuple | sympy.MatrixBase):
        return [leaf for item in value for leaf in _leaves(item)]
    if isinstance(value, sympy.MatrixExpr):
        return _leaves(value.doit().as_explicit())
    if not isinstance(value, sympy.Expr):
        raise TypeError(f"{type(value).__name__} is not made of numbers")
    # Anything will do that no expression of a benchmark is an identity at by chance.
    points = {}
    for symbol in value.free_symbols:
        if not _VARIABLE.fullmatch(str(symbol)):
            raise TypeError("a word, which may be another answer's product of letters")
        points[symbol] = sympy.Float(0.3 + zlib.crc32(str(symbol).encode()) / 2**33)
    return [value.xreplace(points).evalf(15)]


def _parts(leaf: Any) -> list[str]:
    """Return real and imaginary part as decimal strings."""
    import sympy

    parts = []
    for part in leaf.as_real_imag():
        if isinstance(part, sympy.core.numbers.Infinity | sympy.core.numbers.NegativeInfinity):
            parts.append("Infinity" if part > 0 else "-Infinity")
            continue
        if not part.is_number or part is sympy.nan or part is sympy.zoo:
            raise TypeError("not a number")
        number = sympy.Float(part, 15) if part.is_Rational else part
        # Digits that cancelled: it may be zero.
        if not isinstance(number, sympy.Float) or (number != 0 and number._prec < _MIN_BITS):
            raise TypeError("not evaluated to all digits")
        parts.append(str(number))
    return parts


def _rounded(parts: list[str]) -> list[tuple[float, float]]:
    # Noise in the last digits must not decide which numbers are compared.
    return [(float(f"{float(part):.9g}"), 0.0) for part in parts]


def _find(text: str) -> str | None:
    """Return what math-verify takes for the answer in running text."""
    from math_verify import parse

    found = parse(text, parsing_timeout=None)
    return str(found[-1]) if found else None


@lru_cache(maxsize=4096)
def _parse(answer: str) -> list[Any]:
    """Parse LaTeX that `reading` has stripped of units; `i` is the imaginary unit."""
    from math_verify import parse
    from math_verify.parser import LatexExtractionConfig, NormalizationConfig

    rules = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none")
    how = [LatexExtractionConfig(normalization_config=rules)]
    return list(map(_with_imaginary_unit, parse(f"${answer}$", how, parsing_timeout=None)))


def _with_imaginary_unit(item: Any) -> Any:
    import sympy

    if isinstance(item, str):
        return item
    units = {sympy.Symbol("i", real=real): sympy.I for real in (True, False)}
    if isinstance(item, sympy.Interval) and item.free_symbols & set(units):
        # Two complex numbers in parentheses are a pair.
        return sympy.Tuple(item.start.xreplace(units), item.end.xreplace(units))
    return item.xreplace(units)


def _send(replies: Any, reply: Any) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    answer_requests(float(sys.argv[1]), MEMORY_BYTES, _load, _answer)
