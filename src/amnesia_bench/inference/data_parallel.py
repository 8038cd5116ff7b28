"""Data parallelism: one process per device, each with a copy of the model.

Each worker process answers prompts that are neighbours in the prefix tree. The workers share no
data. A worker requests each prompt from the parent process when it needs it, so prompts are still
built on demand. It sends answers back one by one.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from amnesia_bench.errors import AmnesiaError, StageFailedError
from amnesia_bench.inference.prefix_tree import PromptDigest, partition
from amnesia_bench.inference.protocol import EngineOptions, OnDemand, PromptRequest
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.records.evaluation import Generation
from amnesia_bench.tokenizers.tokenizer import load_tokenizer

# Messages are pairs (kind, content). Kinds sent to a worker: generate (number of requests), request
# (a PromptRequest). Kinds sent by a worker: ready (settings), want (index of a request), generation
# (a Generation), done (None), error (an AmnesiaError), crash (a traceback).
Message = tuple[str, Any]


class DataParallelEngine:
    """An `Engine` that distributes its requests over several devices.

    Args:
        checkpoint: checkpoint folder of a causal LM.
        options: the engine options; `device` is ignored.
        devices: the device of each worker process, such as "cuda:0".

    Raises:
        UserError: for the same reasons as in `TransformersEngine.load`.
    """

    def __init__(self, checkpoint: Path, options: EngineOptions, devices: Sequence[str]) -> None:
        self.tokenizer = load_tokenizer(checkpoint)
        self._chunk = options.chunk_on(devices[0].partition(":")[0])
        self._workers: list[tuple[Any, Connection]] = []
        context = multiprocessing.get_context("spawn")
        checks = -(-options.verify_prefix // len(devices))
        for device in devices:
            parent_end, worker_end = context.Pipe()
            worker_options = dataclasses.replace(options, device=device, verify_prefix=checks)
            # A daemon ends with its parent; if the parent is killed, the broken pipe ends it.
            process = context.Process(
                target=_work, args=(worker_end, checkpoint, worker_options), daemon=True
            )
            process.start()
            worker_end.close()
            self._workers.append((process, parent_end))
        try:
            ready = [self._received(connection) for _, connection in self._workers]
        except BaseException:
            self.close()
            raise
        self._settings = cast("Mapping[str, str]", ready[0][1])

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings of a worker's engine; the number of workers does not affect the answers."""
        return self._settings

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        """Answer every request; yield the answers in the order in which the workers finish them.

        Raises:
            UserError: for the same reasons as in `TransformersEngine.generate`.
            StageFailedError: for the same reasons, or because a worker process died.
        """
        digests = [PromptDigest.of(requests[i].tokens, self._chunk) for i in range(len(requests))]
        parts = partition(digests, self._chunk, len(self._workers))
        busy: dict[Connection, tuple[int, ...]] = {}
        for (_, connection), part in zip(self._workers, parts, strict=True):
            if part:
                connection.send(("generate", len(part)))
                busy[connection] = part
        try:
            while busy:
                for connection in cast("list[Connection]", wait(list(busy))):
                    kind, content = self._received(connection)
                    if kind == "want":
                        connection.send(("request", requests[busy[connection][content]]))
                    elif kind == "done":
                        del busy[connection]
                    else:
                        yield content
        finally:
            if busy:
                self.close()  # otherwise the other workers keep generating

    def _received(self, connection: Connection) -> Message:
        try:
            kind, content = cast("Message", connection.recv())
        except (EOFError, ConnectionError) as error:
            raise StageFailedError(
                "a worker process of the engine died; perhaps the system ran out of memory"
            ) from error
        if kind == "error":
            raise cast("AmnesiaError", content)
        if kind == "crash":
            raise RuntimeError(f"a worker process of the engine crashed:\n{content}")
        return kind, content

    def close(self) -> None:
        """Terminate the workers."""
        for process, connection in self._workers:
            connection.close()
            process.terminate()
            process.join()
        self._workers = []

    def __enter__(self) -> DataParallelEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _work(connection: Connection, checkpoint: Path, options: EngineOptions) -> None:
    def fetch(index: int) -> PromptRequest:
        connection.send(("want", index))
        return cast("PromptRequest", connection.recv()[1])

    # If the parent died or closed the pipe, no process is left to receive an error report.
    with suppress(EOFError, ConnectionError, KeyboardInterrupt):
        try:
            engine = TransformersEngine.load(checkpoint, options)
            connection.send(("ready", dict(engine.settings)))
            while True:
                _, count = connection.recv()
                for generation in engine.generate(OnDemand(fetch, range(count))):
                    connection.send(("generation", generation))
                connection.send(("done", None))
        except AmnesiaError as error:
            connection.send(("error", error))
        except (EOFError, ConnectionError):
            raise
        except Exception:
            connection.send(("crash", traceback.format_exc()))
