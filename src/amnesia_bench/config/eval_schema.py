"""How a benchmark is asked, of recall or of reasoning: one config of configs/eval each."""

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

    `samples` is the number of prompts per task and length, `max_new_tokens` the longest answer.
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
    """What a model puts around its thinking."""

    open: Annotated[str, Field(min_length=1)]
    close: Annotated[str, Field(min_length=1)]


class EvalConfig(Frozen):
    """Repeats, sampling, prompt template and the treatment of thinking.

    `temperature` 0 is greedy; `top_k` null is off. `chat_template` false sends the user's message
    as it is. `think` null judges the whole text.
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
            raise ValueError(f"{self.repeats} repeats of a greedy answer are one answer")
        return self


class CodeEvalConfig(EvalConfig):
    """Also which of LiveCodeBench's windows, by its number of problems, and how to judge programs.

    `seconds_per_test` is CPU time.
    """

    window: PositiveInt
    seconds_per_test: Annotated[float, Field(gt=0)]
    checker: Checker
