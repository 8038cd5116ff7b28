"""The loop of a worker process that judges answers: one line of JSON per request and per reply.

The process exits when the parent closes the pipe or dies. A request that exceeds the CPU time limit
ends the process too, by the default action of a kernel signal, which works during any operation.
math-verify's own time limits are Python signal handlers, which wait for long operations to finish.
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
    """Answer requests until the parent closes its end.

    Args:
        seconds: CPU time limit per request; exceeding it ends the process.
        memory_bytes: limit of the address space.
        answer: returns the reply to a request as a JSON value; an exception becomes a reply too.
        prepare: imports slow packages before the first request, outside its time limit.
    """
    # Both settings are inherited: a parent that ignores the signal would disable the time limit.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of a library must not be read as a reply
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
