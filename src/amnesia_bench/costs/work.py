"""The work of a stage, in the units that cost estimates are computed from."""

from __future__ import annotations

from dataclasses import dataclass

from amnesia_bench.config.train_schema import TrainingRun


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Writing a checkpoint; `shape` is the name of a config in configs/model."""

    shape: str


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training a model of this shape; `of_base`: a base model, trained from random weights."""

    run: TrainingRun
    shape: str
    of_base: bool = False


@dataclass(frozen=True, kw_only=True)
class Answering:
    """Generating answers with a model of this shape.

    `prompts` has one entry per kind of prompt: its length in tokens and the number of prompts.
    `new_tokens` is the maximum number of tokens per answer.
    """

    shape: str
    prompts: tuple[tuple[int, int], ...]
    new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Writing:
    """A short stage on the CPU; `bytes` is the approximate size of its output."""

    bytes: float


Work = Weights | Training | Answering | Writing
