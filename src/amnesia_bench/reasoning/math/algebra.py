"""Compare answers by computer algebra, in a worker process; see `worker`.

The parent process does not import this module, since importing sympy takes a second and some
answers crash the process that parses them.
"""

from __future__ import annotations

import re
import sys
import zlib
from functools import lru_cache
from typing import Any

import sympy  # type: ignore[import-untyped]
from math_verify import parse, verify
from math_verify.grader import unwrap_fcs
from math_verify.parser import LatexExtractionConfig, NormalizationConfig

from amnesia_bench.reasoning.math.worker import answer_requests

_MEMORY_BYTES = 2 << 30
_VARIABLE = re.compile(
    "(?:[a-z]|alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|sigma"
    "|tau|upsilon|phi|chi|psi|omega)(?:_.*)?",
    re.IGNORECASE,
)
_MIN_BITS = 40


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
    golds, answers = _parse(gold), _parse(answer)
    if any(map(_is_set, golds)) or any(map(_is_set, answers)):
        golds, answers = _as_sets(golds), _as_sets(answers)
    return bool(verify(golds, answers, float_rounding=6, strict=True, timeout_seconds=None))


def _is_set(value: Any) -> bool:
    return isinstance(value, sympy.Interval | sympy.Union | sympy.Complement)


def _as_sets(parsed: list[Any]) -> list[Any]:
    """Replace inequalities by their solution sets, to compare them with an interval or a set."""
    return [_as_set(value) for value in parsed]


def _as_set(value: Any) -> Any:
    try:
        if isinstance(value, sympy.FiniteSet) and value.args:
            solutions = [unwrap_fcs(item).as_set() for item in value.args]
            both = sympy.Intersection(*solutions)
            return sympy.Union(*solutions) if both.is_empty else both
        return value if isinstance(value, str | sympy.Set) else unwrap_fcs(value).as_set()
    except Exception:  # not inequalities in one variable
        return value


def numbers(parsed: list[Any]) -> dict[str, Any] | None:
    """Return the sorted numbers in a parsed answer, each as real and imaginary part.

    The answer may be an expression, set, interval, tuple or matrix, in which every symbol is
    replaced by a fixed value. `exact` is true if none of the numbers is a decimal fraction. The
    result is None for any other answer, such as a relation (`x=5` may equal 5), and if a number
    cannot be evaluated to full precision.
    """
    values = [item for item in parsed if not isinstance(item, str)]
    if len(values) != 1:
        return None
    try:
        leaves = sorted(map(_parts, _leaves(values[0])), key=_rounded)
    except Exception:  # if sympy fails here, pairs with this answer are compared by algebra
        return None
    exact = not (hasattr(values[0], "has") and values[0].has(sympy.Float))
    return {"exact": exact, "values": leaves}


def _leaves(value: Any) -> list[Any]:
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
    # Evaluate at an arbitrary fixed point at which different expressions have different values.
    points = {}
    for symbol in value.free_symbols:
        if not _VARIABLE.fullmatch(str(symbol)):
            raise TypeError("a word, which another answer may write as a product of letters")
        points[symbol] = sympy.Float(0.3 + zlib.crc32(str(symbol).encode()) / 2**33)
    return [value.xreplace(points).evalf(15)]


def _parts(leaf: Any) -> list[str]:
    """Return the real and the imaginary part of a number as decimal strings."""
    parts = []
    for part in leaf.as_real_imag():
        if isinstance(part, sympy.core.numbers.Infinity | sympy.core.numbers.NegativeInfinity):
            parts.append("Infinity" if part > 0 else "-Infinity")
            continue
        if not part.is_number or part is sympy.nan or part is sympy.zoo:
            raise TypeError("not a number")
        number = sympy.Float(part, 15) if part.is_Rational else part
        # Low precision means that cancellation lost digits, so the number may be zero.
        if not isinstance(number, sympy.Float) or (number != 0 and number._prec < _MIN_BITS):
            raise TypeError("not evaluated to all digits")
        parts.append(str(number))
    return parts


def _rounded(parts: list[str]) -> list[tuple[float, float]]:
    # Two answers are compared number by number in sorted order, so noise in the last digits must
    # not change the order.
    return [(float(f"{float(part):.9g}"), 0.0) for part in parts]


def _find(text: str) -> str | None:
    """Return the answer that math-verify finds in prose, or None if it finds none."""
    matches = parse(text, parsing_timeout=None)
    return str(matches[-1]) if matches else None


@lru_cache(maxsize=4096)
def _parse(answer: str) -> list[Any]:
    """Parse LaTeX without units, which `reading` has removed; `i` is the imaginary unit."""
    rules = NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="none")
    configs = [LatexExtractionConfig(normalization_config=rules)]
    return list(map(_with_imaginary_unit, parse(f"${answer}$", configs, parsing_timeout=None)))


def _with_imaginary_unit(item: Any) -> Any:
    if isinstance(item, str):
        return item
    units = {sympy.Symbol("i", real=real): sympy.I for real in (True, False)}
    if isinstance(item, sympy.Interval) and item.free_symbols & set(units):
        # An interval has no complex ends, so two complex numbers in parentheses are a pair.
        return sympy.Tuple(item.start.xreplace(units), item.end.xreplace(units))
    return item.xreplace(units)


if __name__ == "__main__":
    answer_requests(float(sys.argv[1]), _MEMORY_BYTES, _answer)
