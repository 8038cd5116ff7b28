"""Schemas of configs/eval: each config has the settings of one recall or reasoning benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

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

QUESTION_ANSWER = "question_answer"
# Whether prompts have the model's chat template, or the name of a format without one.
ChatPrompt = bool | Literal["question_answer"]


class NiahConfig(Frozen):
    """Settings of needle-in-a-haystack (NIAH) prompts: every task is used at every length.

    `lengths` are context lengths in tokens, `samples` is the number of prompts per task and length,
    and `max_new_tokens` is the maximum number of tokens per answer.
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


@dataclass(frozen=True, kw_only=True)
class PromptSetChoice:
    """The prompts to use from a folder; None selects all tasks, all lengths or all prompts."""

    tasks: tuple[str, ...] | None
    lengths: tuple[int, ...] | None
    samples: int | None


class Think(Frozen):
    """The strings that a model writes before and after its thinking."""

    open: Annotated[str, Field(min_length=1)]
    close: Annotated[str, Field(min_length=1)]


class EvalConfig(Frozen):
    """Settings of a reasoning benchmark: sampling, prompt template and think strings.

    `repeats` is the number of answers per problem. `temperature` 0 selects greedy decoding, `top_k`
    null disables top-k filtering. If `chat_template` is false, the prompt is the user's message
    without a template; if it is `question_answer`, the prompt is `Question: MESSAGE` and, on the
    next line, `Answer:`, for models without a template. If `think` is null, the complete answer is
    scored, including any thinking.
    """

    repeats: PositiveInt
    max_new_tokens: PositiveInt
    temperature: NonNegativeFloat
    top_p: Annotated[float, Field(gt=0, le=1)]
    top_k: PositiveInt | None
    seed: NonNegativeInt
    chat_template: ChatPrompt
    think: Think | None

    @model_validator(mode="after")
    def _repeats_differ(self) -> Self:
        if self.repeats > 1 and self.temperature == 0:
            raise ValueError(f"{self.repeats} repeats with temperature 0 give equal answers")
        return self


class CodeEvalConfig(EvalConfig):
    """Settings of a reasoning benchmark, including those that only LiveCodeBench has.

    `window` selects one of the benchmark's windows by its number of problems. `seconds_per_test` is
    the CPU time limit per test. `checker` selects how programs are judged.
    """

    window: PositiveInt
    seconds_per_test: Annotated[float, Field(gt=0)]
    checker: Checker
