"""The output of evaluations: generations, their verdicts, and the cells of tables.

These records contain no wall times or other values that vary from run to run, so an evaluation that
was killed and resumed writes the same files as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from amnesia_bench.records.artifacts import Parent


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The sampling parameters of a generation.

    All of them are always passed to the engine, since the defaults of engines differ. A
    `temperature` of 0 means greedy decoding. A `top_k` of None disables top-k sampling. Generation
    ends when one of the `stop` strings occurs; the stop string is not part of the generated text.
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
    """The key of a sample: the answer number `repeat` (from 0) to document `doc` of a task.

    A task with several context lengths has one name per length, such as `niah_single_2@262144`.
    """

    task: str
    doc: int
    repeat: int


class FinishReason(Enum):
    """Why a generation ended: at an end token of the model, a stop string, or the token limit."""

    EOS = "eos"
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The answer of a model to one prompt.

    `tokens` are the generated token ids without the end token. `prompt_tokens` is the length of the
    prompt in tokens.
    """

    key: SampleKey
    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish_reason: FinishReason
    seed: int | None


class Outcome(Enum):
    """The outcome of scoring an answer.

    Only `CORRECT` counts as correct. Answers with the outcome `UNSCORED` are excluded from means.
    """

    CORRECT = "correct"
    WRONG = "wrong"
    NO_ANSWER = "no_answer"
    TIME_LIMIT = "time_limit"
    UNSCORED = "unscored"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A scorer's verdict on one generation.

    `answer` is the answer that was extracted from the text. `detail` explains the outcome.
    """

    key: SampleKey
    outcome: Outcome
    answer: str | None
    detail: str | None


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A confidence interval, and the method that computed it, such as `wilson`."""

    low: float
    high: float
    level: float
    method: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number of a table.

    `value` is a fraction (0.672, never 67.2), or a count if the metric's name ends in `_tokens`. If
    the cell is incomplete, `value` is None and `incomplete` states the reason. `n` is the number of
    prompts, or of problems with `repeats` answers each. `settings` has everything besides the
    parents that the value depends on, for example the chat template, the sampling parameters and
    the attention logit scale at inference.
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
