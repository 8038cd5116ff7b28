"""The front doors of surgery, called in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import amnesia_bench as ab
from amnesia_bench.config.schema import Variant
from amnesia_bench.records.difference import CheckpointDifference
from amnesia_bench.records.restoration import Restoration
from amnesia_bench.requests.checkpoints import DiffRequest, RestoreRequest, VerifyRequest
from amnesia_bench.surgery.verification import Verification


def restore(
    pre: Path | str,
    post: Path | str,
    out: Path | None,
    variant: str | Variant = "qk",
    *,
    layers: Sequence[int] | None = None,
    cast: bool = False,
    allow_noop: bool = False,
) -> Restoration:
    if isinstance(variant, str):
        variant = ab.load_variant(variant)
    if layers is not None:
        select = variant.select.model_copy(update={"layers": tuple(layers)})
        variant = variant.model_copy(update={"select": select})
    request = RestoreRequest(
        pre=Path(pre), post=Path(post), variant=variant, cast=cast, allow_noop=allow_noop
    )
    return ab.restore(request, out)


def diff(a: Path, b: Path) -> CheckpointDifference:
    return ab.diff(DiffRequest(a=a, b=b))


def verify(folder: Path) -> Verification:
    return ab.verify(VerifyRequest(folder=folder))
