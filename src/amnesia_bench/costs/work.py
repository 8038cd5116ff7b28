"""Descriptions of a stage's work, from which its cost is estimated."""

from __future__ import annotations

from dataclasses import dataclass

from amnesia_bench.config.train_schema import TrainingRun


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The work of writing a checkpoint; `shape` is the name of a config in configs/model."""

    shape: str


@dataclass(frozen=True, kw_only=True)
class Training:
    """The work of training a model; `shape` is the name of a config in configs/model.

    `of_base` means that a base model is trained from random weights.
    """

    run: TrainingRun
    shape: str
    of_base: bool = False


@dataclass(frozen=True, kw_only=True)
class Answering:
    """The work of generating answers with a model; `shape` names a config in configs/model.

    `prompts` has one pair per prompt length: the length in tokens and the number of such prompts.
    `new_tokens` is the maximum number of tokens per answer.
    """

    shape: str
    prompts: tuple[tuple[int, int], ...]
    new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Writing:
    """The work of a short stage on the CPU; `bytes` is the approximate size of its output."""

    bytes: float


Work = Weights | Training | Answering | Writing
