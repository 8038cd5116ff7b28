"""Requests for reasoning: generate answers to a benchmark, and score them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import PositiveInt, model_validator

from amnesia_bench.config.cache_key import NEUTRAL
from amnesia_bench.config.eval_schema import CodeEvalConfig, EvalConfig
from amnesia_bench.requests.answering import AnsweringRequest
from amnesia_bench.requests.base import Location, StageRequest


class GenerateRequest(AnsweringRequest):
    """`generate`: generate a model's answers to a reasoning benchmark. It can be resumed.

    Attributes:
        checkpoint: folder of the checkpoint.
        task: math500, gsm8k, aime24, livecodebench or ifeval.
        config: sampling settings, for example `load_eval("math500")`.
        data: file with the problems (for livecodebench, a file or a folder); None downloads them.
        limit: use only the first `limit` problems; None uses all.
        method: label of the table row for these answers.
        chat_template: Jinja file that replaces the tokenizer's chat template.
        engine, division: see `AnsweringRequest`; the documents of a part are problems.
    """

    front_door: ClassVar[str] = "generate"
    checkpoint: Location
    task: str
    config: EvalConfig | CodeEvalConfig
    data: Location | None = None
    limit: PositiveInt | None = None
    method: str = ""
    chat_template: Location | None = None

    @model_validator(mode="after")
    def _a_template_is_used(self) -> Self:
        if self.chat_template is not None and self.config.chat_template is not True:
            value = str(self.config.chat_template).lower()
            raise ValueError(f"--chat-template: the config sets eval.chat_template={value}")
        return self


class ScoreRequest(StageRequest):
    """`score`: score the answers that `generate` wrote.

    Attributes:
        answers: folder that `generate` wrote.
        scorer: name of one of the task's scorers; None selects the strict scorer.
        data: new path of the problems, if they were moved.
        unsafe_no_sandbox: run generated programs without the sandbox.
        workers: number of programs to run in parallel; None runs one per CPU core.
    """

    front_door: ClassVar[str] = "score"
    answers: Location
    scorer: str | None = None
    data: Location | None = None
    unsafe_no_sandbox: Annotated[bool, NEUTRAL] = False
    workers: Annotated[PositiveInt | None, NEUTRAL] = None
