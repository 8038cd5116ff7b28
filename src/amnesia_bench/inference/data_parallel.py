"""One process per device, each with the model and a part of the prompts: those near in the tree.

The processes share nothing. A worker asks its parent for a request when it needs one, so prompts
stay built on demand; answers come back one by one.
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

# Messages are (kind, content). To a worker: generate (how many), request. From a worker: ready
# (settings), want (which), generation, done, error (an AmnesiaError), crash (a traceback).
Message = tuple[str, Any]


class DataParallelEngine:
    """An `Engine` over several devices.

    Args:
        checkpoint: folder of a causal LM.
        options: how to run; `device` is not looked at.
        devices: one per process, such as "cuda:0".

    Raises:
        UserError: as `TransformersEngine.load` does.
    """

    def __init__(self, checkpoint: Path, options: EngineOptions, devices: Sequence[str]) -> None:
        self.tokenizer = load_tokenizer(checkpoint)
        self._chunk = options.chunk_on(devices[0].partition(":")[0])
        self._workers: list[tuple[Any, Connection]] = []
        context = multiprocessing.get_context("spawn")
        checks = -(-options.verify_prefix // len(devices))
        for device in devices:
            ours, theirs = context.Pipe()
            own = dataclasses.replace(options, device=device, verify_prefix=checks)
            # A daemon: it does not outlive us. If we are killed, its pipe breaks, and it ends.
            process = context.Process(target=_work, args=(theirs, checkpoint, own), daemon=True)
            process.start()
            theirs.close()
            self._workers.append((process, ours))
        try:
            ready = [self._received(connection) for _, connection in self._workers]
        except BaseException:
            self.close()
            raise
        self._settings = cast("Mapping[str, str]", ready[0][1])

    @property
    def settings(self) -> Mapping[str, str]:
        """Those of the engine in each process: how many there are changes no answer."""
        return self._settings

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        """Answer every request, in the order in which the processes do.

        Raises:
            UserError: as the engine of one device.
            StageFailedError: as the engine of one device, or a process ended by itself.
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
                self.close()  # the others would go on answering to nobody

    def _received(self, connection: Connection) -> Message:
        try:
            kind, content = cast("Message", connection.recv())
        except (EOFError, ConnectionError) as error:
            raise StageFailedError(
                "a process of the engine ended by itself; perhaps the system ran out of memory"
            ) from error
        if kind == "error":
            raise cast("AmnesiaError", content)
        if kind == "crash":
            raise RuntimeError(f"a process of the engine crashed:\n{content}")
        return kind, content

    def close(self) -> None:
        """End the processes."""
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
    def ask(index: int) -> PromptRequest:
        connection.send(("want", index))
        return cast("PromptRequest", connection.recv()[1])

    # The parent is gone, or wants no more: nobody is left to tell.
    with suppress(EOFError, ConnectionError, KeyboardInterrupt):
        try:
            engine = TransformersEngine.load(checkpoint, options)
            connection.send(("ready", dict(engine.settings)))
            while True:
                _, count = connection.recv()
                for generation in engine.generate(OnDemand(ask, range(count))):
                    connection.send(("generation", generation))
                connection.send(("done", None))
        except AmnesiaError as error:
            connection.send(("error", error))
        except (EOFError, ConnectionError):
            raise
        except Exception:
            connection.send(("crash", traceback.format_exc()))
