"""The border between evaluations and whatever generates: token ids and a sampling in, text out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

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
            StageFailedError: out of memory even alone; says which length would fit.
            UntrustedAnswersError: a checked answer came out otherwise.
        """
        ...
