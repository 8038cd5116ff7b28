"""Data parallelism: one process per GPU, each with a copy of the model.

Each worker process answers prompts that are neighbours in the prefix tree. The workers share no
data. A worker requests each prompt from the parent process when it needs it, so prompts are still
built on demand. It sends answers back one by one.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from amnesia_bench.errors import AmnesiaError, StageFailedError
from amnesia_bench.inference.prefix_tree import PromptDigest, partition
from amnesia_bench.inference.protocol import Engine, EngineOptions, OnDemand, PromptRequest
from amnesia_bench.records.evaluation import Generation
from amnesia_bench.tokenizers.tokenizer import load_tokenizer

# Messages are pairs (kind, content). Kinds sent to a worker: generate (number of requests), request
# (a PromptRequest). Kinds sent by a worker: ready (settings), want (index of a request), generation
# (a Generation), done (None), error (an AmnesiaError), crash (a traceback).
Message = tuple[str, Any]
Loader = Callable[[Path, EngineOptions], Engine]

_VISIBLE = "CUDA_VISIBLE_DEVICES"


class DataParallelEngine:
    """An `Engine` that distributes its requests over several GPUs.

    Args:
        load: loads the engine of each worker process, for example `TransformersEngine.load`.
        checkpoint: checkpoint folder of a causal LM.
        options: the engine options.
        gpus: the GPU that each worker process sees, in the notation of CUDA_VISIBLE_DEVICES; "" for
            a process without a GPU.

    Raises:
        UserError: for the same reasons as in `load`.
    """

    def __init__(
        self, load: Loader, checkpoint: Path, options: EngineOptions, gpus: Sequence[str]
    ) -> None:
        self.tokenizer = load_tokenizer(checkpoint)
        self._chunk = options.chunk_on("cuda" if all(gpus) else "cpu")
        self._workers: list[tuple[Any, Connection]] = []
        context = multiprocessing.get_context("spawn")
        checks = -(-options.verify_prefix // len(gpus))
        for gpu in gpus:
            parent_end, worker_end = context.Pipe()
            worker_options = dataclasses.replace(options, verify_prefix=checks)
            # A daemon ends with its parent; if the parent is killed, the broken pipe ends it.
            process = context.Process(
                target=_work, args=(worker_end, load, checkpoint, worker_options), daemon=True
            )
            with _seeing(gpu):
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
            UserError: for the same reasons as in the workers' engines.
            StageFailedError: for the same reasons, or because a worker process died.
        """
        digests, new_tokens = [], []
        for i in range(len(requests)):
            request = requests[i]
            digests.append(PromptDigest.of(request.tokens, self._chunk))
            new_tokens.append(request.sampling.max_new_tokens)
        parts = partition(digests, new_tokens, self._chunk, len(self._workers))
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


@contextmanager
def _seeing(gpu: str) -> Iterator[None]:
    """Start processes inside the `with` block that see only one GPU, which is "cuda:0" there."""
    before = os.environ.get(_VISIBLE)
    os.environ[_VISIBLE] = gpu
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VISIBLE]
        else:
            os.environ[_VISIBLE] = before


def _work(connection: Connection, load: Loader, checkpoint: Path, options: EngineOptions) -> None:
    # vLLM would run the model in a process of its own, which a daemon may not start.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

    def fetch(index: int) -> PromptRequest:
        connection.send(("want", index))
        return cast("PromptRequest", connection.recv()[1])

    # If the parent died or closed the pipe, no process is left to receive an error report.
    with suppress(EOFError, ConnectionError, KeyboardInterrupt):
        try:
            engine = load(checkpoint, options)
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
