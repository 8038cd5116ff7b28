"""The request of `tune`: search the best trade-off of recall against reasoning."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from amnesia_bench.config.eval_schema import CodeEvalConfig, EvalConfig
from amnesia_bench.config.schema import Frozen
from amnesia_bench.requests.base import Location, Request
from amnesia_bench.requests.engines import EngineChoice
from amnesia_bench.requests.recall import Lengths, Tasks


class ReasoningProblems(Frozen):
    """The problems of a benchmark that measure reasoning.

    Attributes:
        task: name of the benchmark.
        problems: number of problems of a full evaluation; as many others confirm the choice.
        config: sampling settings with one answer per problem, for example
            `load_eval("gsm8k", ["eval.repeats=1"])`.
        data: file with the problems; None downloads them.
    """

    task: str
    problems: PositiveInt
    config: EvalConfig | CodeEvalConfig
    data: Location | None = None

    @model_validator(mode="after")
    def _one_answer_each(self) -> Self:
        if self.config.repeats != 1:
            raise ValueError(
                f"{self.config.repeats} answers per problem: tune asks each problem once "
                "(eval.repeats=1); more problems tell more than more answers"
            )
        return self


class TuneRequest(Request):
    """`tune`: search the shares of pre that post needs to recall again, on a budget of evaluations.

    Attributes:
        pre, post: folders of the checkpoints before and after the fine-tune.
        prompts: folder that `build_prompts` wrote.
        reasoning: the problems that measure reasoning.
        budget: number of full evaluations. One is `samples` prompts of each prompt set and all
            problems; post and QK-Restore take two. The confirmation is not part of it.
        fresh_prompts: folder of other prompts, which confirm the choice; None confirms it with the
            half of `prompts` that the search does not use.
        tasks, lengths: which prompt sets to use; None selects all in `prompts`.
        samples: number of prompts per prompt set of a full evaluation, and as many confirm; None
            uses half of the prompts, or all of them if there are fresh prompts.
        max_new_tokens: maximum number of tokens per answer to a needle prompt; None selects the
            value in configs/eval/check.
        rankings: files that `rank_layers` or `rank_heads` wrote; what they rank first is tried
            first.
        seed: divides the questions between search and confirmation, and draws candidates.
        cast: as in `RestoreRequest`.
        engine: overrides of the model's config; the engine is transformers.
        work: folder for the answers; None selects the store.
    """

    pre: Location
    post: Location
    prompts: Location
    reasoning: ReasoningProblems
    budget: Annotated[float, Field(gt=0, le=100_000)] = 24.0
    fresh_prompts: Location | None = None
    tasks: Tasks | None = None
    lengths: Lengths | None = None
    samples: PositiveInt | None = None
    max_new_tokens: PositiveInt | None = None
    rankings: tuple[Location, ...] = ()
    seed: NonNegativeInt = 0
    cast: bool = False
    engine: EngineChoice = EngineChoice()
    work: Location | None = None

    @model_validator(mode="after")
    def _weights_are_swapped_in_transformers(self) -> Self:
        if self.engine.name != "transformers":
            raise ValueError(
                f"engine {self.engine.name}: tune changes weights inside the model, which only the "
                "transformers engine allows"
            )
        return self
