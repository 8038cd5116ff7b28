"""A running program: ask it, wait no longer than allowed, and see it dead in the end.

Whatever comes back was written by somebody hostile: it is length-checked, parsed as JSON and
believed in nothing else.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

HEADER_BYTES = 8
READ_BYTES = 1 << 20
DIAGNOSTICS_BYTES = 2000
LEAST_WAIT_SECONDS = 0.01
NAME_BYTES = 1 << 16  # of an answer that only names an exception


class Stop(Enum):
    """Why a program gave no answer."""

    TIME_LIMIT = "time limit"
    OUTPUT_LIMIT = "output limit"
    ENDED = "the process ended"
    MALFORMED = "malformed answer"


class ProgramStoppedError(Exception):
    """The program gave no answer, and will give none."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.value)
        self.stop = stop


class SandboxError(Exception):
    """The sandbox itself did not start: nothing is known about the program."""


@dataclass(frozen=True)
class _Until:
    """When waiting ends: a moment of the monotonic clock, and CPU seconds of the program."""

    wall: float
    cpu: float


class Session:
    """Two pipes to a driver.

    `init` is a pidfd of the sandbox's first process and `driver` the number of the process whose
    CPU time counts, once known; `printed` is the file that a script prints to.
    """

    def __init__(self, process: subprocess.Popen[bytes], output_bytes: int) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self.init: int | None = None
        self.driver: int | None = None
        self.printed: int | None = None
        self._output_bytes = output_bytes
        self._requests, self._replies = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(self._requests, False)
        os.set_blocking(self._replies, False)
        self._poll = select.poll()
        self._poll.register(self._replies, select.POLLIN)

    @property
    def pid(self) -> int:
        """The process that was started: bwrap, or without a sandbox the driver."""
        return self._process.pid

    def ask(
        self,
        request: object,
        deadline: float,
        *,
        cpu_seconds: float = math.inf,
        most: int | None = None,
    ) -> Mapping[str, Any]:
        """Send one request and return the answer to it.

        Args:
            request: what JSON can hold.
            deadline: in seconds of the monotonic clock.
            cpu_seconds: that the program may use from now on, in all its threads.
            most: bytes of the answer; None for the limit of all answers.

        Raises:
            ProgramStoppedError: there is none.
        """
        data = json.dumps(request).encode()
        until = self._until(deadline, cpu_seconds)
        self._send(len(data).to_bytes(HEADER_BYTES, "big") + data, until)
        return self._answer(until, most or self._output_bytes)

    def answer(self, deadline: float) -> Mapping[str, Any]:
        """Return the next answer; see `ask`."""
        return self._answer(self._until(deadline, math.inf), self._output_bytes)

    def script_end(self, deadline: float, cpu_seconds: float) -> Mapping[str, Any]:
        """Wait for the end of a script that was loaded.

        Returns:
            The exit status, or what the driver says of an exception that nobody caught.

        Raises:
            ProgramStoppedError: it has not ended in time.
        """
        until = self._until(deadline, cpu_seconds)
        try:
            return self._answer(until, NAME_BYTES)
        except ProgramStoppedError as error:
            if error.stop is not Stop.ENDED:
                raise
        # It has let go of the pipe; it may still run.
        process = os.pidfd_open(self._process.pid)
        try:
            poll = select.poll()
            poll.register(process, select.POLLIN)
            self._wait(until, poll)
        finally:
            os.close(process)
        return {"status": self._process.wait()}

    def output(self, most: int) -> bytes:
        """Return the beginning of what a script has printed."""
        assert self.printed is not None
        parts, place = [], 0
        while part := os.pread(self.printed, min(most - place, READ_BYTES), place):
            parts.append(part)
            place += len(part)
        return b"".join(parts)

    def cpu_seconds(self) -> float:
        """Return the CPU time of the program and its driver so far; 0 when they are gone."""
        if self.driver is None:
            return 0.0
        try:
            # The clock of another process, as clock_getcpuclockid(3) makes it.
            return time.clock_gettime((~self.driver << 3) | 2)
        except OSError:
            return 0.0

    def _until(self, deadline: float, cpu_seconds: float) -> _Until:
        return _Until(deadline, self.cpu_seconds() + cpu_seconds)

    def _answer(self, until: _Until, most: int) -> Mapping[str, Any]:
        size = int.from_bytes(self._receive(HEADER_BYTES, until), "big")
        if size > most:
            raise ProgramStoppedError(Stop.OUTPUT_LIMIT)
        try:
            answer = json.loads(self._receive(size, until))
        except (ValueError, RecursionError) as error:
            raise ProgramStoppedError(Stop.MALFORMED) from error
        if not isinstance(answer, dict):
            raise ProgramStoppedError(Stop.MALFORMED)
        return answer

    def diagnostics(self) -> str:
        """Return what was written to stderr; only before the program itself has run."""
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        text = self._process.stderr.read(DIAGNOSTICS_BYTES) or b""
        return " ".join(text.decode("utf-8", "replace").split())

    def kill(self) -> None:
        """Kill everything that the program is and has started, and wait until it is gone."""
        if self._process.returncode is not None:
            return  # waited for: its number may be another's by now
        with suppress(ProcessLookupError):
            if self.init is not None:
                # With it dies all of its pid namespace; bwrap, which waits for it, ends.
                signal.pidfd_send_signal(self.init, signal.SIGKILL)
            else:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Kill, and give the pipes back."""
        self.kill()
        if self.init is not None:
            os.close(self.init)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def _send(self, data: bytes, until: _Until) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._requests, view) :]
            except BlockingIOError:
                # Only while there is something to send: else it is always writable.
                self._poll.register(self._requests, select.POLLOUT)
                try:
                    ready = self._wait(until)
                finally:
                    self._poll.unregister(self._requests)
                if ready == [self._replies]:
                    # It answers what it has not heard: an answer like any other, so stop telling.
                    raise ProgramStoppedError(Stop.MALFORMED) from None
            except BrokenPipeError:
                raise ProgramStoppedError(Stop.ENDED) from None

    def _receive(self, count: int, until: _Until) -> bytes:
        parts = []
        while count:
            # In this order: an answer that lies there is in time, however late we come for it.
            self._wait(until)
            part = os.read(self._replies, min(count, READ_BYTES))
            if not part:
                raise ProgramStoppedError(Stop.ENDED)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _wait(self, until: _Until, poll: select.poll | None = None) -> list[int]:
        while True:
            cpu_left = until.cpu - self.cpu_seconds()
            if cpu_left <= 0:
                raise ProgramStoppedError(Stop.TIME_LIMIT)
            wall_left = max(0.0, until.wall - time.monotonic())
            # One thread uses no more than a second per second; so many are looked at later.
            wait = min(wall_left, max(cpu_left, LEAST_WAIT_SECONDS))
            if ready := (poll or self._poll).poll(1000 * wait):
                return [descriptor for descriptor, _ in ready]
            if wait == wall_left:
                raise ProgramStoppedError(Stop.TIME_LIMIT)
