"""A process that compares answers by computer algebra, one line of JSON each way.

The parent closes its end when it is done, or dies: either ends this process. An answer that takes
more CPU time than allowed ends it too, by a signal of the kernel's that no code here can miss or
catch: math-verify's own time limits are signal handlers, which wait for long operations to end.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import zlib
from functools import lru_cache
from typing import Any

MEMORY_BYTES = 2 << 30
READY = "ready"


def main() -> None:
    """Serve until the parent closes its end; the one argument is the CPU seconds per request."""
    seconds = float(sys.argv[1])
    # Both are inherited: a parent that ignores the signal would switch the time limit off.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no reply
    import math_verify  # noqa: F401 - loaded once, and not on the clock of the first request

    _send(replies, READY)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        reply = _answer(json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(replies, reply)


def _answer(request: list[str]) -> Any:
    try:
        match request:
            case ["verify", gold, answer]:
                return _verify(gold, answer)
            case ["same", first, second]:
                return _verify(first, second) or _verify(second, first)
            case ["numbers", answer]:
                return numbers(_parse(answer))
            case ["find", text]:
                return _find(text)
    except Exception as error:  # whatever hostile LaTeX makes of a parser
        return {"error": type(error).__name__}
    raise ValueError(f"unknown request {request[0]}")


def _verify(gold: str, answer: str) -> bool:
    from math_verify import verify

    return bool(
        verify(_parse(gold), _parse(answer), float_rounding=6, strict=True, timeout_seconds=None)
    )


def numbers(parsed: list[Any]) -> list[list[float]] | None:
    """Return the numbers that a parsed answer is made of, each as real and imaginary part.

    They are those of an expression, a set, an interval, a tuple or a matrix, sorted, with a fixed
    value for every symbol. None of anything else, of relations above all: `x=5` may equal 5.
    """
    values = [item for item in parsed if not isinstance(item, str)]
    if len(values) != 1:
        return None
    try:
        found = [complex(leaf) for leaf in _leaves(values[0])]
    except (TypeError, ValueError, OverflowError):
        return None
    return sorted([value.real, value.imag] for value in found)


def _leaves(value: Any) -> list[Any]:
    import sympy  # type: ignore[import-untyped]

    if isinstance(value, sympy.Interval):
        return [*_leaves(value.start), *_leaves(value.end)]
    if isinstance(value, sympy.FiniteSet | sympy.Union | sympy.Tuple):
        return [leaf for item in value.args for leaf in _leaves(item)]
    if isinstance(value, tuple | sympy.MatrixBase):
        return [leaf for item in value for leaf in _leaves(item)]
    if not isinstance(value, sympy.Expr):
        raise TypeError(f"{type(value).__name__} is not made of numbers")
    # Anything will do that no expression of a benchmark is an identity at by chance.
    symbols = sorted(value.free_symbols, key=str)
    points = {
        symbol: sympy.Float(0.3 + zlib.crc32(str(symbol).encode()) / 2**33) for symbol in symbols
    }
    return [value.xreplace(points).evalf(15)]


def _find(text: str) -> str | None:
    """Return what math-verify takes for the answer in running text."""
    from math_verify import parse

    found = parse(text, parsing_timeout=None)
    return str(found[-1]) if found else None


@lru_cache(maxsize=4096)
def _parse(answer: str) -> list[Any]:
    from math_verify import parse

    return list(parse(f"${answer}$", parsing_timeout=None))


def _send(replies: Any, reply: Any) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
