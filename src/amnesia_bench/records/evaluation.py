"""The output of evaluations: generations, their verdicts, and the cells of tables.

The records have no wall times or other values that vary from run to run: an evaluation that was
killed and resumed writes the same files as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from amnesia_bench.records.artifacts import Parent


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Sampling parameters. All of them are always passed to an engine, since defaults differ.

    `temperature` 0 is greedy decoding. `top_k` None disables it. Generation ends at a `stop`
    string, which is not part of the text.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int | None
    stop: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens}: must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature}: must be 0 (greedy) or above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be above 0 and at most 1")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: must be at least 1, or null for off")

    @property
    def greedy(self) -> bool:
        """Whether decoding is greedy, which needs no seed."""
        return self.temperature == 0


@dataclass(frozen=True, kw_only=True, order=True)
class SampleKey:
    """The key of a sample: the `repeat`-th answer (from 0) to document `doc` of a task.

    A task at several context lengths has a name per length: `niah_single_2@262144`.
    """

    task: str
    doc: int
    repeat: int


class FinishReason(Enum):
    """Why a generation ended: the model's own end token, a stop string, or the token limit."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The answer of a model to one prompt. `tokens` are the generated ones without an end token."""

    key: SampleKey
    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    seed: int | None


class Outcome(Enum):
    """The outcome of scoring. Only `CORRECT` counts as right; means exclude `UNSCORED`."""

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    TIME_LIMIT = "time_limit"
    UNSCORED = "unscored"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A scorer's verdict on one generation: the extracted answer, and a detail that explains it."""

    key: SampleKey
    outcome: Outcome
    answer: str | None
    detail: str | None


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval of a fraction, and its method (`wilson`, `cluster_bootstrap`)."""

    low: float
    high: float
    level: float
    method: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table.

    `value` is a fraction (0.672, never 67.2), or a count if the metric's name ends in `_tokens`. It
    is None if the cell is incomplete; `incomplete` then has the reason. `n` is the number of
    prompts, or of problems with `repeats` answers each. `settings` has everything that the value
    depends on besides the parents: chat template, sampling, the attention logit scale at inference,
    ...
    """

    model: str
    method: str
    task: str
    context_tokens: int | None
    metric: str
    value: float | None
    n: int
    repeats: int
    stderr: float | None
    interval: Interval | None
    incomplete: str | None
    settings: Mapping[str, str]
    parents: tuple[Parent, ...]

    def __post_init__(self) -> None:
        if (self.value is None) != (self.incomplete is not None):
            raise ValueError("a cell has either a value or the reason why it has none")
