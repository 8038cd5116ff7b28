"""Requests for recall: build NIAH prompts, evaluate, check for a regression, rank layers, heads."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from amnesia_bench.config.cache_key import LATER
from amnesia_bench.config.eval_schema import NiahConfig, PromptSetChoice
from amnesia_bench.config.load import load_niah
from amnesia_bench.config.messages import check_known
from amnesia_bench.config.schema import Frozen
from amnesia_bench.records.ids import RETRIEVAL_TASKS
from amnesia_bench.records.recall import TOLERATED_DROP
from amnesia_bench.requests.answering import AnsweringRequest
from amnesia_bench.requests.base import Location, Request, StageRequest
from amnesia_bench.requests.engines import EngineChoice

Tasks = Annotated[tuple[str, ...], Field(min_length=1)]
Lengths = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class HubEssays(Frozen):
    """The essays on the hub in which lm-eval hides needles; `revision` None selects the newest."""

    revision: str | None = None


Haystack = HubEssays | Location


class BuildPromptsRequest(StageRequest):
    """`build_prompts`: build prompts of RULER's tasks, byte for byte lm-eval's if the seed is 0.

    Attributes:
        tokenizer: folder of the tokenizer or checkpoint.
        tasks: names of the tasks; prompts are built for each task at every length.
        lengths: context lengths in tokens (lm-eval's max_seq_lengths).
        samples: number of prompts per task and length.
        haystack: essays in which the needles are hidden; None if no task needs them.
        repeat: repeat the haystack if it is too short.
        seed: seed of the needles and their places; lm-eval always uses 0. Prompts of another seed
            are apart from those on which something was chosen.
        squad, hotpot: files with the questions of ruler_qa_squad and ruler_qa_hotpot; None if these
            tasks are not built.
    """

    front_door: ClassVar[str] = "build_prompts"
    tokenizer: Location
    tasks: Tasks
    lengths: Lengths
    samples: PositiveInt
    haystack: Haystack | None
    repeat: bool = False
    seed: Annotated[NonNegativeInt, LATER] = 0
    squad: Annotated[Location | None, LATER] = None
    hotpot: Annotated[Location | None, LATER] = None


class EvaluateRequest(AnsweringRequest):
    """`evaluate`: evaluate a checkpoint on NIAH prompts with lm-eval.

    Attributes:
        checkpoint: folder of the checkpoint.
        prompts: folder that `build_prompts` wrote; None lets lm-eval build the prompts.
        tasks, lengths, samples: which prompts to evaluate; None selects all prompts in `prompts`
            or, if `prompts` is None, the values in configs/eval/niah.
        max_new_tokens: maximum number of tokens per answer; None selects the value in
            configs/eval/niah. Tasks that have a smaller limit in lm-eval keep it.
        method: label of the table row for these cells.
        verify_prefix: number of answers to recompute without prefix sharing, as a check.
        engine, division: see `AnsweringRequest`; the documents of a part are prompts of every task
            and length.
    """

    front_door: ClassVar[str] = "evaluate"
    checkpoint: Location
    prompts: Location | None
    tasks: Tasks | None = None
    lengths: Lengths | None = None
    samples: PositiveInt | None = None
    max_new_tokens: PositiveInt | None = None
    method: str = ""
    verify_prefix: NonNegativeInt = 0


# The presets of `check`, and their configs in configs/eval.
SUITES = {"quick": "check_quick", "niah": "check", "ruler": "check_ruler"}


def _known_suite(name: str) -> str:
    check_known("suite", name, list(SUITES))
    return name


class CheckRequest(Request):
    """`check`: test whether a fine-tune lost long-range recall.

    Attributes:
        pre, post: folders of the checkpoints before and after the fine-tune.
        restored: folder of a restored checkpoint, which is compared with both.
        prompts: folder that `build_prompts` wrote; None builds the prompts from `haystack`.
        haystack: essays from which the prompts are built.
        suite: a preset of tasks, lengths and samples (`SUITES`); None selects all prompts in
            `prompts` or, if `prompts` is None, the suite niah.
        tasks, lengths, samples: which prompts to evaluate; None selects those of the suite.
        margin: largest drop in recall (0 to 1) that does not count as a regression.
        engine: inference engine, and overrides of the model's config.
        work: folder for answers and records; None selects the store.
    """

    pre: Location
    post: Location
    restored: Location | None = None
    prompts: Location | None = None
    haystack: Haystack | None = None
    suite: Annotated[str, AfterValidator(_known_suite)] | None = None
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

    @property
    def defaults(self) -> NiahConfig:
        """The config of the suite; that of the suite niah if no suite is chosen."""
        return load_niah(SUITES[self.suite or "niah"])

    @property
    def choice(self) -> PromptSetChoice:
        """The tasks, lengths and samples to use; None selects all prompts in `prompts`."""
        if self.prompts is not None and self.suite is None:
            return PromptSetChoice(tasks=self.tasks, lengths=self.lengths, samples=self.samples)
        defaults = self.defaults
        return PromptSetChoice(
            tasks=self.tasks or defaults.tasks,
            lengths=self.lengths or defaults.lengths,
            samples=self.samples or defaults.samples,
        )


class RankLayersRequest(StageRequest):
    """`rank_layers`: rank softmax layers by the retrieval accuracy lost without each (Appendix M).

    The transformers engine always runs it, because layers are ablated inside the model.

    Attributes:
        checkpoint: folder of the checkpoint.
        tasks: names of the retrieval tasks; the ranking is based on the mean of their accuracies.
        samples: maximum number of documents per task; None uses all.
        data: folder with the tasks' files; None downloads them.
    """

    front_door: ClassVar[str] = "rank_layers"
    out_file: ClassVar[str] = "ranking.json"
    checkpoint: Location
    tasks: Tasks = RETRIEVAL_TASKS
    samples: PositiveInt | None = None
    data: Location | None = None


class RankHeadsRequest(Request):
    """`rank_heads`: score every attention head by how much of the answer it copies from a needle.

    Attributes:
        checkpoint: folder of the checkpoint.
        prompts: folder that `build_prompts` wrote for its tokenizer.
        post: folder of a fine-tune of the checkpoint; the drift of each head between the two is
            then compared with its score.
        tasks, lengths: which prompts to use; None selects all prompts in `prompts`.
        samples: number of prompts per task and length; None uses all.
    """

    checkpoint: Location
    prompts: Location
    post: Location | None = None
    tasks: Tasks | None = None
    lengths: Lengths | None = None
    samples: PositiveInt | None = None
