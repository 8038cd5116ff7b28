"""Requests for recall: needle prompts, their evaluation, the regression gate, layer rankings."""

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
    """The essays that lm-eval hides needles in, from the hub; `revision` None is the newest."""

    revision: str | None = None


Haystack = HubEssays | Location


class BuildPromptsRequest(StageRequest):
    """`build_prompts`: build NIAH prompts, byte for byte those of lm-eval.

    Attributes:
        tokenizer: folder of the tokenizer or checkpoint.
        tasks: each at every length.
        lengths: lm-eval's max_seq_lengths, in tokens.
        samples: prompts per task and length.
        haystack: the essays; None where no task needs them.
        repeat: repeat a haystack that is too short.
    """

    front_door: ClassVar[str] = "build_prompts"
    tokenizer: Location
    tasks: Tasks
    lengths: Lengths
    samples: PositiveInt
    haystack: Haystack | None
    repeat: bool = False


class EvaluateRequest(StageRequest):
    """`evaluate`: let lm-eval ask a checkpoint NIAH prompts, and score its answers.

    Attributes:
        checkpoint: folder of the checkpoint.
        prompts: folder that `build_prompts` wrote; None lets lm-eval make the prompts itself.
        tasks, lengths, samples: which prompts; None is all of `prompts`, or configs/eval/niah.
        max_new_tokens: maximum tokens per answer; None is that of configs/eval/niah.
        method: the row's label in a table.
        engine: what runs the model.
        verify_prefix: how many answers to compute a second time without a shared prefix.
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
    """`check`: has a fine-tune lost long-range recall?

    Attributes:
        pre, post: folders of the checkpoints before and after the fine-tune.
        restored: folder of a repaired checkpoint, compared with both.
        prompts: folder that `build_prompts` wrote; None builds them from `haystack`.
        haystack: the essays for prompts that are built.
        tasks, lengths, samples: which prompts; None is all of `prompts`, or configs/eval/check.
        margin: drop of recall (0 to 1) that is not yet a regression.
        engine: what runs the models.
        work: folder of answers and records; None is the store.
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
    """`rank_layers`: rank softmax layers by what retrieval loses without them (Appendix M).

    Attributes:
        checkpoint: folder of the checkpoint.
        tasks: the retrieval tasks whose mean accuracy counts.
        samples: maximum documents per task; None is all.
        data: folder with the tasks' files; None fetches them.
    """

    front_door: ClassVar[str] = "rank_layers"
    out_file: ClassVar[str] = "ranking.json"
    checkpoint: Location
    tasks: Tasks = RANKING_TASKS
    samples: PositiveInt | None = None
    data: Location | None = None
