"""The loop of a process that judges answers, one line of JSON each way.

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
        seconds: CPU time per request; taking more ends the process.
        memory_bytes: how much address space there is.
        answer: returns the reply to a request, as JSON can write it; what it raises is a reply too.
        prepare: loads what is slow to load, before the first request and off its clock.
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


def _send(replies: Any, reply: Any) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()
