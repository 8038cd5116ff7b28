"""Requests for checkpoints: download, initialize, convert, restore, diff, verify."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt

from amnesia_bench.config.schema import Frozen, ModelFile, Variant
from amnesia_bench.requests.base import Location, Request, StageRequest


class DownloadRequest(StageRequest):
    """`download`: download a model from the Hugging Face hub.

    `revision` is a commit, branch or tag; None selects the newest commit.
    """

    front_door: ClassVar[str] = "download"
    repository: str
    revision: str | None = None


class InitializeRequest(StageRequest):
    """`initialize`: create a model with random weights.

    `model` defines its shape: `load_model("qwen3_laptop")`. `seed` is the seed of the weights.
    """

    front_door: ClassVar[str] = "initialize"
    model: ModelFile
    tokenizer: Location
    seed: NonNegativeInt = 0


class ConvertRequest(StageRequest):
    """`convert`: convert a Qwen3 teacher to a HypeNet checkpoint.

    Attributes:
        teacher: folder of the Qwen3 checkpoint.
        model: shape of the HypeNet; `load_model("hypenet_2b")`.
        stage: 1 creates the student of hidden-state alignment, 2 the hybrid.
        student: stage 2 only: the trained stage-1 checkpoint whose lightning mixers are copied.
        tie_head: what to do when the teacher's head is untied and the config's is tied (9B):
            "teacher" keeps the teacher's head, "config" drops it as the authors did.
        seed: seed of the new gates.
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
    """`restore`: put weights of `pre` back into `post`, and prove the result.

    Attributes:
        pre: folder of the checkpoint before the fine-tune.
        post: folder of the checkpoint after the fine-tune.
        variant: which weights to restore, and how; `load_variant("qk")` is QK-Restore.
        ranked_layers: restore only these layers instead of the variant's layers.
        cast: round the weights of pre to post's dtype where the dtypes differ.
        allow_noop: write a copy even if no weight would change.
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
    """`verify`: check a folder that this package wrote against its manifest."""

    folder: Location
