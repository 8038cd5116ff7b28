"""What a stage will have to do, in the terms that estimates are made of."""

from __future__ import annotations

from dataclasses import dataclass

from amnesia_bench.config.train_schema import TrainingRun


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A checkpoint is written; `shape` is a config of configs/model."""

    shape: str


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training, from a checkpoint of this shape; `of_base`: of a base, from random weights."""

    run: TrainingRun
    shape: str
    of_base: bool = False


@dataclass(frozen=True, kw_only=True)
class Answering:
    """A model of this shape answers.

    `prompts` holds for each kind of prompt its length in tokens and how many there are;
    `new_tokens` is how many it answers at most.
    """

    shape: str
    prompts: tuple[tuple[int, int], ...]
    new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Writing:
    """A small stage of the CPU that writes about so many bytes."""

    bytes: float


Work = Weights | Training | Answering | Writing
