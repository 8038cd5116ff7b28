"""The border between evaluations and whatever generates: token ids and a sampling in, text out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.errors import StageFailedError
from amnesia_bench.records.evaluation import Generation, SampleKey, Sampling


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """One prompt, already tokenised: no engine adds, drops or truncates a token.

    `tokens` is int32 [T]. `seed` is that of this sample alone, None when greedy.
    """

    key: SampleKey
    tokens: NDArray[np.int32]
    sampling: Sampling
    seed: int | None


class UntrustedAnswersError(StageFailedError):
    """A check failed: no answer of this run is to be kept, those given before included."""


class OnDemand(Sequence[Request]):
    """Requests that are built whenever they are asked for, and not kept.

    500 prompts of 256K tokens are half a gigabyte.

    Args:
        build: makes the request at a position.
        positions: which of them there are, in order.
    """

    def __init__(self, build: Callable[[int], Request], positions: Sequence[int]) -> None:
        self._build = build
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> Request: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Request]: ...

    def __getitem__(self, index: int | slice) -> Request | Sequence[Request]:
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

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
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
