"""Main loop of a worker process that judges answers: one line of JSON per request and per reply.

The process exits when the parent closes the pipe or dies. A request that exceeds the CPU time limit
also ends the process, through the default action of a signal, which interrupts any operation.
math-verify's own time limits are not used, since they rely on Python signal handlers, which cannot
run before a long C operation has finished.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

READY = "ready"


def answer_requests(
    seconds: float,
    memory_bytes: int,
    answer: Callable[[list[str]], Any],
    prepare: Callable[[], object] = lambda: None,
) -> None:
    """Answer requests until the parent closes its end of the pipe.

    Args:
        seconds: CPU time limit per request; exceeding it ends the process.
        memory_bytes: limit of the process's address space.
        answer: returns the reply to a request as a JSON value. If it raises an exception, the reply
            is an error with the name of the exception.
        prepare: imports slow packages before the first request, when no time limit applies.
    """
    # Signal dispositions and masks are inherited, so a parent that ignores or blocks this signal
    # would otherwise disable the time limit.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # so that text printed by a library is not read as a reply
    prepare()
    _send(replies, READY)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            reply = answer(json.loads(line))
        except Exception as error:  # a hostile answer can make a parser raise anything
            reply = {"error": type(error).__name__}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(replies, reply)


def _send(replies: Any, reply: Any) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()
