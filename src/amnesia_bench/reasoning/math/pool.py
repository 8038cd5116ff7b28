"""Processes that judge answers; one that takes too long on an answer is killed and replaced."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from importlib.util import find_spec
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

from amnesia_bench.errors import MissingEnvironmentError, StageFailedError
from amnesia_bench.reasoning.math.worker import READY

ALGEBRA = "amnesia_bench.reasoning.math.algebra"
# CPU time of one comparison: a verdict must not depend on what else the machine is doing. Real
# answers take milliseconds.
ANSWER_SECONDS = 2.0
# A process that has not used its CPU time up after so much longer is stuck otherwise.
_WALL_FACTOR = 20
_START_SECONDS = 300.0
# Each process has its next request at hand when it is done with one.
_AT_HAND = 2


class Failure(Enum):
    """Why there is no reply: the time limit, or a process that died (out of memory or of stack)."""

    TIME_LIMIT = "time_limit"
    DIED = "died"


class _Backlog:
    """The requests nobody has, in a stretch per process.

    Neighbours share answers, and a process parses an answer once. Who is through with its own
    stretch takes from the far end of the longest.
    """

    def __init__(self, requests: int, processes: int) -> None:
        ends = [requests * i // processes for i in range(processes + 1)]
        self._stretches = [deque(range(*pair)) for pair in pairwise(ends)]

    def take(self, place: int) -> int | None:
        if own := self._stretches[place % len(self._stretches)]:
            return own.popleft()
        longest = max(self._stretches, key=len)
        return longest.pop() if longest else None

    def put_back(self, requests: deque[int]) -> None:
        self._stretches[0].extendleft(reversed(requests))


@dataclass(eq=False)
class _Worker:
    """A process, the requests it has, and since when it owes the reply to the first of them.

    `place` numbers the processes at work at one time.
    """

    process: subprocess.Popen[bytes]
    place: int
    since: float
    ready: bool = False
    held: deque[int] = field(default_factory=deque)
    unread: bytes = b""

    @property
    def overdue(self) -> bool:
        limit = ANSWER_SECONDS * _WALL_FACTOR if self.ready else _START_SECONDS
        return bool(self.held or not self.ready) and time.monotonic() - self.since > limit


class ComparisonPool:
    """Workers as many as this process may use cores, started when the first request comes.

    Args:
        worker: the module that they run; see `worker.answer_requests`.
        needs: the package without which it cannot.
    """

    def __init__(self, worker: str = ALGEBRA, needs: str = "math_verify") -> None:
        self._worker, self._needs = worker, needs
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._workers:
            self._end(self._workers[-1])
        self._selector.close()

    def run(self, requests: Sequence[Sequence[str]]) -> list[Any]:
        """Return the reply to each request, or the `Failure` in its place; see `worker`.

        Raises:
            MissingEnvironmentError: math-verify is not installed.
            StageFailedError: the processes cannot be started.
        """
        replies: list[Any] = [None] * len(requests)
        cores = len(os.sched_getaffinity(0))
        waiting = _Backlog(len(requests), cores)
        open_requests = len(requests)
        while open_requests:
            self._start(min(open_requests, cores))
            for worker in list(self._workers):
                self._hand_out(worker, requests, waiting)
            for key, _ in self._selector.select(timeout=1.0):
                open_requests -= self._take(key.data, replies, waiting)
            for worker in [worker for worker in self._workers if worker.overdue]:
                worker.process.kill()
        return replies

    def _start(self, count: int) -> None:
        while len(self._workers) < count:
            if find_spec(self._needs) is None:
                raise MissingEnvironmentError(
                    f"judging these answers needs {self._needs.replace('_', '-')}",
                    hint='pip install "amnesia-bench[eval]"',
                )
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._worker, str(ANSWER_SECONDS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # sympy's order of terms, and with it now and then its verdict, follows hashes.
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
            taken = {worker.place for worker in self._workers}
            place = next(i for i in range(count) if i not in taken)
            worker = _Worker(process=process, place=place, since=time.monotonic())
            self._workers.append(worker)
            assert process.stdout is not None
            self._selector.register(process.stdout, selectors.EVENT_READ, worker)

    def _hand_out(
        self, worker: _Worker, requests: Sequence[Sequence[str]], waiting: _Backlog
    ) -> None:
        while worker.ready and len(worker.held) < _AT_HAND:
            if (request := waiting.take(worker.place)) is None:
                return
            if not worker.held:
                worker.since = time.monotonic()
            worker.held.append(request)
            line = json.dumps(list(requests[request])) + "\n"
            assert worker.process.stdin is not None
            try:
                worker.process.stdin.write(line.encode())
                worker.process.stdin.flush()
            except BrokenPipeError:  # it just died: its end of file is about to be read
                return

    def _take(self, worker: _Worker, replies: list[Any], waiting: _Backlog) -> int:
        """Read what a worker has written; return how many requests that settles."""
        assert worker.process.stdout is not None
        data = os.read(worker.process.stdout.fileno(), 1 << 16)
        if not data:
            return self._bury(worker, replies, waiting)
        *lines, worker.unread = (worker.unread + data).split(b"\n")
        worker.since = time.monotonic()
        settled = 0
        for line in lines:
            reply = json.loads(line)
            if reply == READY and not worker.ready:
                worker.ready = True
                continue
            replies[worker.held.popleft()] = reply
            settled += 1
        return settled

    def _bury(self, worker: _Worker, replies: list[Any], waiting: _Backlog) -> int:
        code = worker.process.wait()
        self._end(worker)
        if not worker.ready:
            raise StageFailedError(
                f"a process for comparing answers ended with code {code} before it was ready",
                hint=f"See why: {sys.executable} -m {self._worker} 5",
            )
        if not worker.held:
            return 0
        # Replies come in order: the first request is the one it died of.
        late = code == -signal.SIGPROF or worker.overdue
        failure = Failure.TIME_LIMIT if late else Failure.DIED
        replies[worker.held.popleft()] = failure
        waiting.put_back(worker.held)
        return 1

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        assert worker.process.stdin is not None
        assert worker.process.stdout is not None
        self._selector.unregister(worker.process.stdout)
        worker.process.stdout.close()
        worker.process.kill()
        worker.process.wait()
        with contextlib.suppress(BrokenPipeError):  # what it had not read yet
            worker.process.stdin.close()
