"""Prompts and models made up for tests of the gate: planted accuracies, known prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.inference.candidates import Candidate
from amnesia_bench.inference.protocol import PromptRequest
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.evaluation import FinishReason, Generation
from amnesia_bench.store.held_files import HeldFiles


@dataclass(frozen=True)
class FakePromptSet:
    """Prompt `i` is the tokens [length, i], its value `v<i>`, its depth one of 40."""

    task: str = "niah_single_2"
    context_tokens: int = 4096
    size: int = 500

    @property
    def name(self) -> str:
        return f"{self.task}@{self.context_tokens}"

    @property
    def sha256(self) -> str:
        return f"{self.context_tokens:064x}"

    def __len__(self) -> int:
        return self.size

    def tokens(self, i: int) -> NDArray[np.int32]:
        return np.array([self.context_tokens, i], np.int32)

    def values(self, i: int) -> tuple[str, ...]:
        return (f"v{i}.",)

    def depth_percent(self, i: int) -> float:
        return 100 * (i % 40) / 39

    def needle_span(self, i: int) -> tuple[int, int]:
        return (0, 1)


class PlantedEngine:
    """Knows the answer to each prompt with a given chance, the same whenever it is asked."""

    def __init__(self, accuracy: float, seed: int = 0, wrong: str = "no idea") -> None:
        self.accuracy = accuracy
        self.seed = seed
        self.wrong = wrong
        self.answered: list[int] = []

    @property
    def settings(self) -> Mapping[str, str]:
        return {"engine": "planted"}

    def text(self, request: PromptRequest) -> str:
        length, i = map(int, request.tokens)
        known = np.random.default_rng([self.seed, length, i]).random() < self.accuracy
        return f" v{i}." if known else self.wrong

    def generate(self, requests: Sequence[PromptRequest]) -> Iterator[Generation]:
        for position in range(len(requests)):
            request = requests[position]
            self.answered.append(request.key.doc)
            text = self.text(request)
            yield Generation(
                key=request.key,
                text=text,
                tokens=tuple(text.encode()),
                prompt_tokens=len(request.tokens),
                finish_reason=FinishReason.EOS,
                seed=request.seed,
            )


def candidate(role: str) -> Candidate:
    return Candidate(
        role=role,
        method=role,
        folder=Path(f"models/{role}"),
        parent=Parent(role=role, location=f"models/{role}", identity=f"sha256:{role}"),
        held=HeldFiles(()),
        tokenizer=BareTokenizer(),
    )


@dataclass(frozen=True)
class BareTokenizer:
    """Puts nothing around a text."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[len(text)])
