"""The interface between evaluations and engines: requests, engines, engine options and wrappers.

An engine generates an answer for token ids and sampling parameters.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.inference.batch_rows import PREFILL_CHUNK_TOKENS
from amnesia_bench.records.evaluation import Generation, SampleKey, Sampling
from amnesia_bench.store.held_files import HeldFiles


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptRequest:
    """One tokenised prompt with its sampling parameters; engines never add or drop a token.

    `tokens` are the token ids, int32 [T]. `seed` is the seed of this answer, or None for greedy
    decoding.
    """

    key: SampleKey
    tokens: NDArray[np.int32]
    sampling: Sampling
    seed: int | None


class UntrustedAnswersError(StageFailedError):
    """A check failed, so all answers of this run must be discarded, including earlier ones."""


class OnDemand(Sequence[PromptRequest]):
    """A sequence of requests, each of which is built on every access and not kept.

    In memory, 500 prompts of 256K tokens would occupy half a gigabyte.

    Args:
        build: builds the request for a position.
        positions: the positions for which requests are built, in order.
    """

    def __init__(self, build: Callable[[int], PromptRequest], positions: Sequence[int]) -> None:
        self._build = build
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> PromptRequest: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[PromptRequest]: ...

    def __getitem__(self, index: int | slice) -> PromptRequest | Sequence[PromptRequest]:
        if isinstance(index, slice):
            return OnDemand(self._build, self._positions[index])
        return self._build(self._positions[index])


def sample_seed(seed: int, key: SampleKey) -> int:
    """Return the 63-bit seed of one answer: a hash of only the base seed and the answer's key."""
    text = json.dumps([seed, key.task, key.doc, key.repeat])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Engine(Protocol):
    """An inference engine, which generates answers to requests."""

    @property
    def settings(self) -> Mapping[str, str]:
        """All engine settings that can affect an answer; they are stored in the records."""
        ...

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        """Answer every request, in any order; yield each answer as soon as it is finished.

        `requests` may build its items on demand, since 500 prompts of 256K tokens would occupy
        half a gigabyte. An engine therefore accesses an item when it needs it, and does not keep
        it.

        Raises:
            UserError: a prompt and its new tokens do not fit the model's context.
            StageFailedError: a prompt does not fit into memory even alone (the message names a
                length that does), or logits are NaN or infinite.
            UntrustedAnswersError: a recomputed answer differs from the original one.
        """
        ...


DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """All options of an engine.

    Args:
        dtype: dtype of weights and activations; "auto" uses the dtype of the checkpoint, but
            float32 on a CPU that has no instructions for products of that dtype: they would take
            three times as long.
        device: "cpu", "cuda", "cuda:1", ...; None uses a GPU if one is available.
        max_rows: maximum number of answers that are decoded together; memory may allow fewer;
            None means the maximum of `batch_rows` for the device.
        prefill_chunk_tokens: prefill chunk size. Shared prefixes end at its multiples, so a run
            with shared prefixes makes the same calls as one without. A sliding window needs
            5 bytes per pair of a chunk token and a window token. None means 2,048, or 256 on a
            CPU, where small chunks are as fast and allow longer shared prefixes.
        share_prefixes: whether to prefill a common prefix of several prompts only once.
        verify_prefix: number of answers to recompute without shared prefixes.
        max_context_tokens: overrides the limit in the model's config, which may be wrong
            (Jet-Nemotron's is 131,072) or may apply to training only.
        attn_logits_scaling: overrides the value in a HypeNet's config; for example "hype 500". The
            scaling is off in training, so no trained checkpoint has it in its config.
    """

    dtype: str = "auto"
    device: str | None = None
    max_rows: int | None = None
    prefill_chunk_tokens: int | None = None
    share_prefixes: bool = True
    verify_prefix: int = 0
    max_context_tokens: int | None = None
    attn_logits_scaling: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"dtype={self.dtype}", hint=f"Use one of {', '.join(DTYPES)}.")
        for name in ("max_rows", "prefill_chunk_tokens", "max_context_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be at least 1")
        if self.verify_prefix < 0:
            raise UserError(f"verify_prefix={self.verify_prefix}: must be 0 (none) or above")

    def chunk_on(self, device_type: str) -> int:
        """Return the prefill chunk size, in tokens, on a device type such as "cpu" or "cuda"."""
        if self.prefill_chunk_tokens is not None:
            return self.prefill_chunk_tokens
        return PREFILL_CHUNK_TOKENS["cpu" if device_type == "cpu" else "cuda"]


class HeldEngine:
    """Wraps an engine, and raises an error as soon as a file of its checkpoint changes.

    The files are checked before each answer is yielded and not only after loading: loaded weights
    may still be memory-mapped pages of the file, and the processes of a multi-process engine may
    load them at any time.

    Args:
        engine: the wrapped engine.
        held: the files of its checkpoint, in the state in which they were hashed.
    """

    def __init__(self, engine: Engine, held: HeldFiles) -> None:
        self._engine = engine
        self._held = held

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings of the wrapped engine."""
        return self._engine.settings

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        """Answer every request; see `Engine.generate`.

        Raises:
            StageFailedError: a file of the checkpoint changed; earlier answers remain valid.
        """
        for generation in self._engine.generate(requests):
            self._held.check()
            yield generation


def silent(*_: object) -> None:
    """Ignore all arguments: a progress callback that reports nothing."""


class ProgressEngine:
    """Wraps an engine, and reports its progress.

    Args:
        engine: the wrapped engine.
        report: called with the number of answered requests and the total number of requests,
            before the first answer and after each answer.
    """

    def __init__(self, engine: Engine, report: Callable[[int, int], None]) -> None:
        self._engine = engine
        self._report = report

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings of the wrapped engine."""
        return self._engine.settings

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        """Answer every request; see `Engine.generate`."""
        self._report(0, len(requests))
        for done, generation in enumerate(self._engine.generate(requests), start=1):
            self._report(done, len(requests))
            yield generation
