"""Descriptions of a stage's work, from which its cost is estimated."""

from __future__ import annotations

from dataclasses import dataclass, replace

from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.records.ids import EngineName


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
    """The work of generating answers with a model.

    Attributes:
        shape: the name of a config in configs/model.
        prompts: one pair per prompt length: the length in tokens and the number of answers.
        new_tokens: the maximum number of tokens per answer.
        mean_new_tokens: the expected mean number of tokens per answer; None if every answer is
            assumed to reach the maximum.
        repeats: the number of answers to the same prompt.
        prompts_per_haystack: the number of prompts that hide their needles in the same text; None
            for prompts that share no prefix.
        engine: the inference engine.
    """

    shape: str
    prompts: tuple[tuple[int, int], ...]
    new_tokens: int
    mean_new_tokens: int | None = None
    repeats: int = 1
    prompts_per_haystack: int | None = None
    engine: EngineName = "transformers"

    @property
    def expected_new_tokens(self) -> int:
        """The expected mean number of tokens per answer."""
        mean = self.mean_new_tokens
        return self.new_tokens if mean is None else min(mean, self.new_tokens)


@dataclass(frozen=True, kw_only=True)
class Writing:
    """The work of a short stage on the CPU; `bytes` is the approximate size of its output."""

    bytes: float


@dataclass(frozen=True, kw_only=True)
class Probing:
    """The work of measuring attention or predictions on texts.

    Attributes:
        shape: the name of a config in configs/model.
        texts: the number of forward passes, over all checkpoints.
        tokens: the length of a text.
        gradients: whether each text has a backward pass, too.
    """

    shape: str
    texts: int
    tokens: int
    gradients: bool = False


@dataclass(frozen=True, kw_only=True)
class Combined:
    """Several pieces of work of one stage, one after the other."""

    parts: tuple[Answering, ...]


Work = Weights | Training | Answering | Writing | Probing | Combined


def at_most(work: Work) -> Work:
    """Return the work if every answer has the maximum length, which is its upper bound."""
    if isinstance(work, Combined):
        return Combined(parts=tuple(replace(part, mean_new_tokens=None) for part in work.parts))
    return replace(work, mean_new_tokens=None) if isinstance(work, Answering) else work
