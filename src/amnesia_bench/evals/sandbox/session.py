"""A running program: ask it, wait no longer than allowed, and see it dead in the end.

Whatever comes back was written by somebody hostile: it is length-checked, parsed as JSON and
believed in nothing else.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from typing import Any

HEADER_BYTES = 8
READ_BYTES = 1 << 20
DIAGNOSTICS_BYTES = 2000


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


class Session:
    """Two pipes to a driver. `init` is a pidfd of the sandbox's first process, once known."""

    def __init__(self, process: subprocess.Popen[bytes], output_bytes: int) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self.init: int | None = None
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

    def ask(self, request: object, deadline: float) -> Mapping[str, Any]:
        """Send one request and return the answer to it.

        Args:
            request: what JSON can hold.
            deadline: in seconds of the monotonic clock.

        Raises:
            ProgramStoppedError: there is none.
        """
        data = json.dumps(request).encode()
        self._send(len(data).to_bytes(HEADER_BYTES, "big") + data, deadline)
        return self.answer(deadline)

    def answer(self, deadline: float) -> Mapping[str, Any]:
        """Return the next answer; see `ask`."""
        size = int.from_bytes(self._receive(HEADER_BYTES, deadline), "big")
        if size > self._output_bytes:
            raise ProgramStoppedError(Stop.OUTPUT_LIMIT)
        try:
            answer = json.loads(self._receive(size, deadline))
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

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._requests, view) :]
            except BlockingIOError:
                # Only while there is something to send: else it is always writable.
                self._poll.register(self._requests, select.POLLOUT)
                try:
                    ready = self._wait(deadline)
                finally:
                    self._poll.unregister(self._requests)
                if ready == [self._replies]:
                    # It answers what it has not heard: an answer like any other, so stop telling.
                    raise ProgramStoppedError(Stop.MALFORMED) from None
            except BrokenPipeError:
                raise ProgramStoppedError(Stop.ENDED) from None

    def _receive(self, count: int, deadline: float) -> bytes:
        parts = []
        while count:
            # In this order: an answer that lies there is in time, however late we come for it.
            self._wait(deadline)
            part = os.read(self._replies, min(count, READ_BYTES))
            if not part:
                raise ProgramStoppedError(Stop.ENDED)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _wait(self, deadline: float) -> list[int]:
        left = max(0.0, deadline - time.monotonic())
        ready = self._poll.poll(1000 * left)
        if not ready:
            raise ProgramStoppedError(Stop.TIME_LIMIT)
        return [descriptor for descriptor, _ in ready]
