"""Requests for checkpoints: download, initialize, convert, restore, diff, verify."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt

from amnesia_bench.config.schema import Frozen, ModelFile, Variant
from amnesia_bench.requests.base import Location, Request, StageRequest


class DownloadRequest(StageRequest):
    """`download`: download a model from the Hugging Face hub.

    `revision` is a commit, a branch or a tag; None selects the newest commit.
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
    """

    front_door: ClassVar[str] = "convert"
    teacher: Location
    model: ModelFile
    stage: Literal[1, 2]
    student: Location | None = None
    tie_head: Literal["teacher", "config"] = "teacher"
    seed: NonNegativeInt = 0


class RankedLayers(Frozen):
    """The `count` most important layers in the ranking that `rank_layers` wrote to `file`."""

    count: PositiveInt
    file: Location


class RestoreRequest(StageRequest):
    """`restore`: restore weights of `pre` in a copy of `post`, and verify the result.

    Attributes:
        pre: folder of the checkpoint before the fine-tune.
        post: folder of the checkpoint after the fine-tune.
        variant: which weights to restore, and by which rule; `load_variant("qk")` is QK-Restore.
        ranked_layers: restore only these layers instead of the variant's layers.
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


class DiffRequest(Request):
    """`diff`: compare two checkpoints tensor by tensor."""

    a: Location
    b: Location


class VerifyRequest(Request):
    """`verify`: check the files of a folder that this package wrote against its manifest."""

    folder: Location
