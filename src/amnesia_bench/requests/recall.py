"""Requests for recall: build NIAH prompts, evaluate, check for a regression, rank layers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from amnesia_bench.config.schema import Frozen
from amnesia_bench.records.recall import TOLERATED_DROP
from amnesia_bench.requests.base import Location, Request, StageRequest
from amnesia_bench.requests.engines import EngineChoice

RANKING_TASKS = ("fda", "swde", "ruler_qa_squad")

Tasks = Annotated[tuple[str, ...], Field(min_length=1)]
Lengths = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class HubEssays(Frozen):
    """The essays on the hub in which lm-eval hides needles; `revision` None selects the newest."""

    revision: str | None = None


Haystack = HubEssays | Location


class BuildPromptsRequest(StageRequest):
    """`build_prompts`: build NIAH prompts that are byte for byte equal to lm-eval's.

    Attributes:
        tokenizer: folder of the tokenizer or checkpoint.
        tasks: names of the tasks; prompts are built for each task at every length.
        lengths: context lengths in tokens (lm-eval's max_seq_lengths).
        samples: number of prompts per task and length.
        haystack: essays in which the needles are hidden; None if no task needs them.
        repeat: repeat the haystack if it is too short.
    """

    front_door: ClassVar[str] = "build_prompts"
    tokenizer: Location
    tasks: Tasks
    lengths: Lengths
    samples: PositiveInt
    haystack: Haystack | None
    repeat: bool = False


class EvaluateRequest(StageRequest):
    """`evaluate`: evaluate a checkpoint on NIAH prompts with lm-eval.

    Attributes:
        checkpoint: folder of the checkpoint.
        prompts: folder that `build_prompts` wrote; None lets lm-eval build the prompts.
        tasks, lengths, samples: which prompts to evaluate; None selects all prompts in `prompts`
            or, if `prompts` is None, the values in configs/eval/niah.
        max_new_tokens: maximum number of tokens per answer; None selects the value in
            configs/eval/niah.
        method: label of the table row for these cells.
        engine: inference engine, and overrides of the model's config.
        verify_prefix: number of answers to recompute without prefix sharing, as a check.
    """

    front_door: ClassVar[str] = "evaluate"
    checkpoint: Location
    prompts: Location | None
    tasks: Tasks | None = None
    lengths: Lengths | None = None
    samples: PositiveInt | None = None
    max_new_tokens: PositiveInt | None = None
    method: str = ""
    engine: EngineChoice = EngineChoice()
    verify_prefix: NonNegativeInt = 0


class CheckRequest(Request):
    """`check`: test whether a fine-tune lost long-range recall.

    Attributes:
        pre, post: folders of the checkpoints before and after the fine-tune.
        restored: folder of a restored checkpoint, which is compared with both.
        prompts: folder that `build_prompts` wrote; None builds the prompts from `haystack`.
        haystack: essays from which the prompts are built.
        tasks, lengths, samples: which prompts to evaluate; None selects all prompts in `prompts`
            or, if `prompts` is None, the values in configs/eval/check.
        margin: largest drop in recall (0 to 1) that does not count as a regression.
        engine: inference engine, and overrides of the model's config.
        work: folder for answers and records; None selects the store.
    """

    pre: Location
    post: Location
    restored: Location | None = None
    prompts: Location | None = None
    haystack: Haystack | None = None
    tasks: Tasks | None = None
    lengths: Lengths | None = None
    samples: PositiveInt | None = None
    margin: Annotated[float, Field(ge=0, lt=1 - TOLERATED_DROP, allow_inf_nan=False)] = 0.0
    engine: EngineChoice = EngineChoice()
    work: Location | None = None

    @model_validator(mode="after")
    def _one_source_of_prompts(self) -> Self:
        if self.prompts is not None and self.haystack is not None:
            raise ValueError("give either prompts or a haystack to build them from, not both")
        return self


class RankLayersRequest(StageRequest):
    """`rank_layers`: rank softmax layers by the retrieval accuracy lost without each (Appendix M).

    Attributes:
        checkpoint: folder of the checkpoint.
        tasks: names of the retrieval tasks; the ranking is based on the mean of their accuracies.
        samples: maximum number of documents per task; None uses all.
        data: folder with the tasks' files; None downloads them.
    """

    front_door: ClassVar[str] = "rank_layers"
    out_file: ClassVar[str] = "ranking.json"
    checkpoint: Location
    tasks: Tasks = RANKING_TASKS
    samples: PositiveInt | None = None
    data: Location | None = None
