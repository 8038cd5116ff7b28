"""Requests for reasoning: generate answers to a benchmark, score them, compare two models."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import PositiveInt, model_validator

from amnesia_bench.config.cache_key import NEUTRAL
from amnesia_bench.config.eval_schema import CodeEvalConfig, EvalConfig
from amnesia_bench.requests.base import Location, Request, StageRequest
from amnesia_bench.requests.engines import EngineChoice


class GenerateRequest(StageRequest):
    """`generate`: let a model answer a reasoning benchmark; resumable.

    Attributes:
        checkpoint: folder of the model.
        task: math500, gsm8k, aime24, livecodebench or ifeval.
        config: how answers are drawn; `load_eval("math500")`.
        data: a file (livecodebench: or a folder) with the problems instead of the hub's.
        limit: only the first `limit` problems.
        method: the row's label in a table.
        chat_template: a Jinja file instead of the tokenizer's template.
        engine: what runs the model.
    """

    front_door: ClassVar[str] = "generate"
    checkpoint: Location
    task: str
    config: EvalConfig | CodeEvalConfig
    data: Location | None = None
    limit: PositiveInt | None = None
    method: str = ""
    chat_template: Location | None = None
    engine: EngineChoice = EngineChoice()

    @model_validator(mode="after")
    def _a_template_is_used(self) -> Self:
        if self.chat_template is not None and not self.config.chat_template:
            raise ValueError("--chat-template: the config says eval.chat_template=false")
        return self


class ScoreRequest(StageRequest):
    """`score`: judge the answers that `generate` wrote.

    Attributes:
        answers: their folder.
        scorer: a scorer of the task; None is its strict one.
        data: the problems, if they are no longer where they were.
        unsafe_no_sandbox: run programs outside a sandbox.
        workers: programs that run at once; None is one per CPU core.
    """

    front_door: ClassVar[str] = "score"
    answers: Location
    scorer: str | None = None
    data: Location | None = None
    unsafe_no_sandbox: Annotated[bool, NEUTRAL] = False
    workers: Annotated[PositiveInt | None, NEUTRAL] = None


class CompareRequest(Request):
    """`compare`: is one model better than another on the same problems?

    Attributes:
        first, second: folders of answers, both scored before; differences are first less second.
        scorer: whose verdicts count; None is the scorer that `score` takes by default.
        first_scores: where `score` wrote the results of `first`; None is in that folder.
    """

    first: Location
    second: Location
    scorer: str | None = None
    first_scores: Location | None = None
