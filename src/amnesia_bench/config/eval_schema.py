"""Schemas of configs/eval: the settings of one recall or reasoning benchmark per config."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from amnesia_bench.config.messages import check_known
from amnesia_bench.config.schema import Frozen, unique
from amnesia_bench.records.ids import RECALL_TASKS
from amnesia_bench.records.reasoning import Checker


class NiahConfig(Frozen):
    """Needles in a haystack: every task at every length, in tokens.

    `samples` is the number of prompts per task and length, `max_new_tokens` the maximum number of
    tokens per answer.
    """

    tasks: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(unique)]
    lengths: Annotated[tuple[PositiveInt, ...], Field(min_length=1), AfterValidator(unique)]
    samples: PositiveInt
    max_new_tokens: PositiveInt

    @model_validator(mode="after")
    def _the_tasks_exist(self) -> Self:
        for task in self.tasks:
            check_known("tasks", task, RECALL_TASKS)
        return self


class Think(Frozen):
    """The strings that a model writes before and after its thinking."""

    open: Annotated[str, Field(min_length=1)]
    close: Annotated[str, Field(min_length=1)]


class EvalConfig(Frozen):
    """Repeats, sampling, prompt template and the treatment of thinking.

    `temperature` 0 decodes greedily; `top_k` null disables top-k. `chat_template` false sends the
    user's message unchanged. `think` null scores the whole text.
    """

    repeats: PositiveInt
    max_new_tokens: PositiveInt
    temperature: NonNegativeFloat
    top_p: Annotated[float, Field(gt=0, le=1)]
    top_k: PositiveInt | None
    seed: NonNegativeInt
    chat_template: bool
    think: Think | None

    @model_validator(mode="after")
    def _repeats_differ(self) -> Self:
        if self.repeats > 1 and self.temperature == 0:
            raise ValueError(f"{self.repeats} repeats with temperature 0 give equal answers")
        return self


class CodeEvalConfig(EvalConfig):
    """Adds the settings of LiveCodeBench.

    `window` selects a window of the benchmark by its number of problems. `seconds_per_test` is the
    limit of CPU time per test, `checker` the way in which programs are judged.
    """

    window: PositiveInt
    seconds_per_test: Annotated[float, Field(gt=0)]
    checker: Checker
