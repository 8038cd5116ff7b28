"""The border between evaluations and engines: requests, engines, their options and wrappers.

Token ids and a sampling go in, text comes out.
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
from amnesia_bench.records.evaluation import Generation, SampleKey, Sampling
from amnesia_bench.store.held_files import HeldFiles


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptRequest:
    """One prompt, already tokenised: no engine adds, drops or truncates a token.

    `tokens` is int32 [T]. `seed` is that of this sample alone, None when greedy.
    """

    key: SampleKey
    tokens: NDArray[np.int32]
    sampling: Sampling
    seed: int | None


class UntrustedAnswersError(StageFailedError):
    """A check failed: no answer of this run is to be kept, those given before included."""


class OnDemand(Sequence[PromptRequest]):
    """Requests that are built whenever they are asked for, and not kept.

    500 prompts of 256K tokens are half a gigabyte.

    Args:
        build: makes the request at a position.
        positions: which of them there are, in order.
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
    """Return the seed of one answer, 63 bits: a hash, so that no other answer moves it."""
    text = json.dumps([seed, key.task, key.doc, key.repeat])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Engine(Protocol):
    """Something that answers requests."""

    @property
    def settings(self) -> Mapping[str, str]:
        """Everything about the engine that may change an answer, for the record."""
        ...

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        """Answer every request, in any order, each as soon as it is done.

        `requests` may build its items on demand (500 prompts of 256K tokens are half a
        gigabyte), so an engine asks for an item when it needs it and lets go of it after.

        Raises:
            UserError: a prompt and its new tokens do not fit the model's context.
            StageFailedError: out of memory even alone (says which length would fit), or logits
                that are NaN or infinite.
            UntrustedAnswersError: a checked answer came out otherwise.
        """
        ...


DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Everything about a run that is not the checkpoint and not the request.

    Args:
        dtype: of weights and activations; "auto" is the checkpoint's own.
        device: "cpu", "cuda", "cuda:1", ...; None takes a GPU where there is one.
        max_batch_tokens: rows of a batch times the tokens of its longest row, new ones included.
            One row alone may be longer.
        prefill_chunk_tokens: prompts are read in pieces of this size, and shared prefixes end at
            its multiples: so that a shared and a full run make the very same calls. A sliding
            window needs 5 bytes per token of a piece and token of the window. None is 2,048, and
            256 on a CPU, which is as fast by small pieces, and then more is shared.
        share_prefixes: read text that several prompts begin with once.
        verify_prefix: how many answers to compute a second time, without sharing.
        max_context_tokens: in place of the limit in the model's config, which may be wrong
            (Jet-Nemotron's says 131,072) or a limit of training only.
        attn_logits_scaling: in place of that in a HypeNet's config, such as "hype 500": off in
            training, it stands in the config of no checkpoint that was trained.
    """

    dtype: str = "auto"
    device: str | None = None
    max_batch_tokens: int = 2**18
    prefill_chunk_tokens: int | None = None
    share_prefixes: bool = True
    verify_prefix: int = 0
    max_context_tokens: int | None = None
    attn_logits_scaling: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"dtype={self.dtype}", hint=f"Use one of {', '.join(DTYPES)}.")
        for name in ("max_batch_tokens", "prefill_chunk_tokens", "max_context_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: must be at least 1")
        if self.verify_prefix < 0:
            raise UserError(f"verify_prefix={self.verify_prefix}: must be 0 (none) or above")

    def chunk_on(self, device_type: str) -> int:
        """Return the tokens of a piece of a prompt on "cpu", "cuda", ..."""
        if self.prefill_chunk_tokens is not None:
            return self.prefill_chunk_tokens
        return 256 if device_type == "cpu" else 2048


class HeldEngine:
    """Passes on what another engine answers, as long as the files behind it have not changed.

    Files are compared before each answer and not only after loading: loaded weights may be pages
    of the file still, and an engine of several processes loads them when it likes.

    Args:
        engine: the engine that answers.
        held: the files of its checkpoint, as they were when they were hashed.
    """

    def __init__(self, engine: Engine, held: HeldFiles) -> None:
        self._engine = engine
        self._held = held

    @property
    def settings(self) -> Mapping[str, str]:
        """Those of the engine behind it."""
        return self._engine.settings

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        """Answer every request; see `Engine.generate`.

        Raises:
            StageFailedError: a file of the checkpoint was changed; answers before that stand.
        """
        for generation in self._engine.generate(requests):
            self._held.check()
            yield generation


def silent(*_: object) -> None:
    """Report nothing."""


class WatchedEngine:
    """Hands on what the engine behind it answers.

    Args:
        engine: that one.
        report: told how many of how many requests are answered: before the first, after each.
    """

    def __init__(self, engine: Engine, report: Callable[[int, int], None]) -> None:
        self._engine = engine
        self._report = report

    @property
    def settings(self) -> Mapping[str, str]:
        """Those of the engine behind it."""
        return self._engine.settings

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        """Answer every request; see `Engine.generate`."""
        self._report(0, len(requests))
        for done, generation in enumerate(self._engine.generate(requests), start=1):
            self._report(done, len(requests))
            yield generation
