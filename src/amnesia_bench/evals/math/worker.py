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
from functools import lru_cache
from typing import Any

MEMORY_BYTES = 2 << 30
READY = "ready"


def main() -> None:
    """Serve until the parent closes its end; the one argument is the CPU seconds per request."""
    seconds = float(sys.argv[1])
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
