"""A pool of worker processes that judge answers; workers that exceed a time limit are replaced."""

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
# CPU time limit of one request; a verdict must not depend on how busy the machine is, as it would
# with a limit on wall-clock time. Comparing real answers takes milliseconds.
ANSWER_SECONDS = 2.0
# A worker is killed if a request takes this multiple of the limit in wall-clock time, which means
# that it is stuck without using CPU time.
_WALL_FACTOR = 20
_START_SECONDS = 300.0
# Two, so that a worker finds its next request in its pipe when it finishes one.
_REQUESTS_PER_WORKER = 2


class Failure(Enum):
    """Why a request has no reply.

    TIME_LIMIT: it exceeded the time limit. DIED: its worker ran out of memory or stack.
    """

    TIME_LIMIT = "time_limit"
    DIED = "died"


class _Backlog:
    """Pending requests, divided into one contiguous range per worker.

    Neighbouring requests share answers, and a worker parses each answer only once. A worker whose
    range is empty takes the last request of the longest range.
    """

    def __init__(self, requests: int, workers: int) -> None:
        ends = [requests * i // workers for i in range(workers + 1)]
        self._ranges = [deque(range(*pair)) for pair in pairwise(ends)]

    def take(self, slot: int) -> int | None:
        if own := self._ranges[slot % len(self._ranges)]:
            return own.popleft()
        longest = max(self._ranges, key=len)
        return longest.pop() if longest else None

    def put_back(self, requests: deque[int]) -> None:
        self._ranges[0].extendleft(reversed(requests))


@dataclass(eq=False)
class _Worker:
    """A worker process and its open requests; `since` is when it started on the first of them.

    `slot` is the index of the worker among those that run at the same time.
    """

    process: subprocess.Popen[bytes]
    slot: int
    since: float
    ready: bool = False
    requests: deque[int] = field(default_factory=deque)
    unread: bytes = b""

    @property
    def overdue(self) -> bool:
        limit = ANSWER_SECONDS * _WALL_FACTOR if self.ready else _START_SECONDS
        return bool(self.requests or not self.ready) and time.monotonic() - self.since > limit


class ComparisonPool:
    """A pool with one worker per usable core; workers start when there are requests.

    Args:
        worker: the name of the module that workers run; see `worker.answer_requests`.
        needs: the name of the package that this module needs.
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
        """Return, in order, the reply to each request or its `Failure`; see `worker`.

        Raises:
            MissingEnvironmentError: the package that the workers need is not installed.
            StageFailedError: the workers cannot be started.
        """
        replies: list[Any] = [None] * len(requests)
        cores = len(os.sched_getaffinity(0))
        backlog = _Backlog(len(requests), cores)
        open_requests = len(requests)
        while open_requests:
            self._start(min(open_requests, cores))
            for worker in list(self._workers):
                self._hand_out(worker, requests, backlog)
            for key, _ in self._selector.select(timeout=1.0):
                open_requests -= self._read_replies(key.data, replies, backlog)
            for worker in [worker for worker in self._workers if worker.overdue]:
                worker.process.kill()
        return replies

    def _start(self, count: int) -> None:
        while len(self._workers) < count:
            if find_spec(self._needs) is None:
                raise MissingEnvironmentError(
                    f"judging these answers needs the package {self._needs.replace('_', '-')}",
                    hint='pip install "amnesia-bench[eval]"',
                )
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", self._worker, str(ANSWER_SECONDS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # sympy's order of terms, and sometimes its verdict, depends on the hash seed.
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
            used = {worker.slot for worker in self._workers}
            slot = next(i for i in range(count) if i not in used)
            worker = _Worker(process=process, slot=slot, since=time.monotonic())
            self._workers.append(worker)
            assert process.stdout is not None
            self._selector.register(process.stdout, selectors.EVENT_READ, worker)

    def _hand_out(
        self, worker: _Worker, requests: Sequence[Sequence[str]], backlog: _Backlog
    ) -> None:
        while worker.ready and len(worker.requests) < _REQUESTS_PER_WORKER:
            if (request := backlog.take(worker.slot)) is None:
                return
            if not worker.requests:
                worker.since = time.monotonic()
            worker.requests.append(request)
            line = json.dumps(list(requests[request])) + "\n"
            assert worker.process.stdin is not None
            try:
                worker.process.stdin.write(line.encode())
                worker.process.stdin.flush()
            except BrokenPipeError:  # the worker just died; the next read will return end of file
                return

    def _read_replies(self, worker: _Worker, replies: list[Any], backlog: _Backlog) -> int:
        """Store a worker's available replies and return the number of finished requests."""
        assert worker.process.stdout is not None
        data = os.read(worker.process.stdout.fileno(), 1 << 16)
        if not data:
            return self._remove_dead(worker, replies, backlog)
        *lines, worker.unread = (worker.unread + data).split(b"\n")
        worker.since = time.monotonic()
        finished = 0
        for line in lines:
            reply = json.loads(line)
            if reply == READY and not worker.ready:
                worker.ready = True
                continue
            replies[worker.requests.popleft()] = reply
            finished += 1
        return finished

    def _remove_dead(self, worker: _Worker, replies: list[Any], backlog: _Backlog) -> int:
        code = worker.process.wait()
        self._end(worker)
        if not worker.ready:
            raise StageFailedError(
                f"a process for comparing answers ended with code {code} before it was ready",
                hint=f"To see why, run: {sys.executable} -m {self._worker} 5",
            )
        if not worker.requests:
            return 0
        # A worker answers requests in order, so it died while processing its first open request.
        late = code == -signal.SIGPROF or worker.overdue
        failure = Failure.TIME_LIMIT if late else Failure.DIED
        replies[worker.requests.popleft()] = failure
        backlog.put_back(worker.requests)
        return 1

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        assert worker.process.stdin is not None
        assert worker.process.stdout is not None
        self._selector.unregister(worker.process.stdout)
        worker.process.stdout.close()
        worker.process.kill()
        worker.process.wait()
        with contextlib.suppress(BrokenPipeError):  # closing flushes data that nobody will read
            worker.process.stdin.close()
