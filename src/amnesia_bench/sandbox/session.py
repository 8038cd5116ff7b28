"""Communicate with a running program: send requests, await answers within limits, and kill it.

Answers come from a hostile program: their length is checked and they are parsed as JSON, but their
content is not trusted.
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
NAME_BYTES = 1 << 16  # maximum size of an answer that contains only the name of an exception


class Stop(Enum):
    """The reason why a program gave no answer."""

    TIME_LIMIT = "time limit"
    OUTPUT_LIMIT = "output limit"
    ENDED = "the process ended"
    MALFORMED = "malformed answer"


class ProgramStoppedError(Exception):
    """The program gave no answer and will not give one."""

    def __init__(self, stop: Stop) -> None:
        super().__init__(stop.value)
        self.stop = stop


class SandboxError(Exception):
    """The sandbox did not start, so the program did not run."""


@dataclass(frozen=True)
class _Deadline:
    """When waiting ends: at time `wall` on the monotonic clock or after `cpu` seconds of CPU time.

    `cpu` counts all CPU time that the program has used since it started.
    """

    wall: float
    cpu: float


class Session:
    """The two pipes to a driver.

    `init` is a pidfd of the sandbox's first process, and `driver` is the pid of the process whose
    CPU time is limited; both are None until known. `printed` is the descriptor of a script's output
    file.
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
        """The pid of the started process: bwrap, or the driver if there is no sandbox."""
        return self._process.pid

    def ask(
        self,
        request: object,
        deadline: float,
        *,
        cpu_seconds: float = math.inf,
        max_bytes: int | None = None,
    ) -> Mapping[str, Any]:
        """Send one request and return its answer.

        Args:
            request: a JSON value.
            deadline: the time on the monotonic clock, in seconds, at which waiting ends.
            cpu_seconds: CPU time that the program may use from now on, summed over its threads.
            max_bytes: maximum size of the answer; None for the session's `output_bytes`.

        Raises:
            ProgramStoppedError: the program gave no valid answer within the limits.
        """
        data = json.dumps(request).encode()
        until = self._until(deadline, cpu_seconds)
        self._send(len(data).to_bytes(HEADER_BYTES, "big") + data, until)
        return self._answer(until, max_bytes or self._output_bytes)

    def answer(self, deadline: float) -> Mapping[str, Any]:
        """Return the next answer; see `ask`."""
        return self._answer(self._until(deadline, math.inf), self._output_bytes)

    def script_end(self, deadline: float, cpu_seconds: float) -> Mapping[str, Any]:
        """Wait until a loaded script exits.

        Returns:
            The exit status, or the driver's answer that names an uncaught exception.

        Raises:
            ProgramStoppedError: the script did not exit within the limits.
        """
        until = self._until(deadline, cpu_seconds)
        try:
            return self._answer(until, NAME_BYTES)
        except ProgramStoppedError as error:
            if error.stop is not Stop.ENDED:
                raise
        # The pipe is closed, but the script may still be running.
        process = os.pidfd_open(self._process.pid)
        try:
            poll = select.poll()
            poll.register(process, select.POLLIN)
            self._wait(until, poll)
        finally:
            os.close(process)
        return {"status": self._process.wait()}

    def output(self, max_bytes: int) -> bytes:
        """Return the first `max_bytes` bytes of a script's output."""
        assert self.printed is not None
        parts, offset = [], 0
        while part := os.pread(self.printed, min(max_bytes - offset, READ_BYTES), offset):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def cpu_seconds(self) -> float:
        """Return the CPU time used by the driver and its program; 0 if unknown or after exit."""
        if self.driver is None:
            return 0.0
        try:
            # The clock id of another process, computed by the formula of clock_getcpuclockid(3).
            return time.clock_gettime((~self.driver << 3) | 2)
        except OSError:
            return 0.0

    def _until(self, deadline: float, cpu_seconds: float) -> _Deadline:
        return _Deadline(deadline, self.cpu_seconds() + cpu_seconds)

    def _answer(self, until: _Deadline, max_bytes: int) -> Mapping[str, Any]:
        size = int.from_bytes(self._receive(HEADER_BYTES, until), "big")
        if size > max_bytes:
            raise ProgramStoppedError(Stop.OUTPUT_LIMIT)
        try:
            answer = json.loads(self._receive(size, until))
        except (ValueError, RecursionError) as error:
            raise ProgramStoppedError(Stop.MALFORMED) from error
        if not isinstance(answer, dict):
            raise ProgramStoppedError(Stop.MALFORMED)
        return answer

    def diagnostics(self) -> str:
        """Return the stderr output; it is only meaningful before the program itself has run."""
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        text = self._process.stderr.read(DIAGNOSTICS_BYTES) or b""
        return " ".join(text.decode("utf-8", "replace").split())

    def kill(self) -> None:
        """Kill the program and every process that it started, then wait for its exit."""
        if self._process.returncode is not None:
            return  # the process was already reaped, so another process may have its pid by now
        with suppress(ProcessLookupError):
            if self.init is not None:
                # This kills every process in its pid namespace; bwrap, which waits for it, exits.
                signal.pidfd_send_signal(self.init, signal.SIGKILL)
            else:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Kill the program and close the pipes."""
        self.kill()
        if self.init is not None:
            os.close(self.init)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def _send(self, data: bytes, until: _Deadline) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._requests, view) :]
            except BlockingIOError:
                # Poll for writability only while there is data to send, since the pipe of an idle
                # driver is always writable.
                self._poll.register(self._requests, select.POLLOUT)
                try:
                    ready = self._wait(until)
                finally:
                    self._poll.unregister(self._requests)
                if ready == [self._replies]:
                    # The program answered before it received the request, which is not valid.
                    raise ProgramStoppedError(Stop.MALFORMED) from None
            except BrokenPipeError:
                raise ProgramStoppedError(Stop.ENDED) from None

    def _receive(self, count: int, until: _Deadline) -> bytes:
        parts = []
        while count:
            # Poll before reading: an answer that is already in the pipe at the deadline counts as
            # on time.
            self._wait(until)
            part = os.read(self._replies, min(count, READ_BYTES))
            if not part:
                raise ProgramStoppedError(Stop.ENDED)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _wait(self, until: _Deadline, poll: select.poll | None = None) -> list[int]:
        while True:
            cpu_left = until.cpu - self.cpu_seconds()
            if cpu_left <= 0:
                raise ProgramStoppedError(Stop.TIME_LIMIT)
            wall_left = max(0.0, until.wall - time.monotonic())
            # A single thread uses at most one CPU second per second, so this wait cannot overrun
            # its CPU limit; with several threads, the loop checks the CPU time again afterwards.
            wait = min(wall_left, max(cpu_left, LEAST_WAIT_SECONDS))
            if ready := (poll or self._poll).poll(1000 * wait):
                return [descriptor for descriptor, _ in ready]
            if wait == wall_left:
                raise ProgramStoppedError(Stop.TIME_LIMIT)
