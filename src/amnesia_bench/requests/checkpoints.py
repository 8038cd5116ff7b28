"""Requests for checkpoints: fetch, make, convert, repair, compare, verify."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt

from amnesia_bench.config.schema import Frozen, ModelFile, Variant
from amnesia_bench.requests.base import Location, Request, StageRequest


class DownloadRequest(StageRequest):
    """`download`: fetch a model from the Hugging Face hub.

    `revision` is a commit, branch or tag; None is the newest commit.
    """

    front_door: ClassVar[str] = "download"
    repository: str
    revision: str | None = None


class InitializeRequest(StageRequest):
    """`initialize`: make a model with random weights.

    `model` is its shape: `load_model("qwen3_laptop")`; `seed` is that of the weights.
    """

    front_door: ClassVar[str] = "initialize"
    model: ModelFile
    tokenizer: Location
    seed: NonNegativeInt = 0


class ConvertRequest(StageRequest):
    """`convert`: make a HypeNet checkpoint out of a Qwen3 teacher.

    Attributes:
        teacher: folder of the Qwen3 checkpoint.
        model: shape of the HypeNet; `load_model("hypenet_2b")`.
        stage: 1 is the student of hidden-state alignment, 2 the hybrid.
        student: stage 2: the trained stage-1 checkpoint whose lightning mixers it takes over.
        tie_head: whose word counts when the teacher's head is untied and the config's is tied
            (9B): "teacher" keeps the teacher's head, "config" drops it as the authors did.
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
    """The `count` most important layers of a ranking that `rank_layers` wrote to `file`."""

    count: PositiveInt
    file: Location


class RestoreRequest(StageRequest):
    """`restore`: put weights of `pre` back into `post`, and prove it.

    Attributes:
        pre: folder of the checkpoint before the fine-tune.
        post: folder of the checkpoint after it.
        variant: which weights, and how; `load_variant("qk")` is QK-Restore.
        ranked_layers: restore only these layers, instead of those of the variant.
        cast: round pre to post's dtype where they differ.
        allow_noop: write a copy even if nothing would change.
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
