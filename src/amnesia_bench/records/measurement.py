"""The output of `amnesia measure`: what a restore rule needs to know about two checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from amnesia_bench.records.artifacts import Parent


@dataclass(frozen=True, kw_only=True)
class LayerInformation:
    """The mean diagonal Fisher information of a layer's selected weights, in pre and in post.

    `layer` is None for weights outside the layers.
    """

    layer: int | None
    pre: float
    post: float


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The values from which the rule of a variant determines how far to move post towards pre.

    Attributes:
        pre, post: the checkpoints; their identities are hashes of their contents.
        select, rule: the variant for which they were measured.
        data: a description of the tokens on which they were measured.
        loss_pre: the mean loss of pre in nats per token; None if the rule needs no losses.
        losses: the mean losses of post after 0, 1, ... steps towards pre, in nats per token.
        fisher: the information of each layer; empty if the rule does not need it.
        settings: the dtype and the device of the models.
    """

    pre: Parent
    post: Parent
    select: Mapping[str, object]
    rule: Mapping[str, object]
    data: str
    loss_pre: float | None
    losses: tuple[float, ...]
    fisher: tuple[LayerInformation, ...]
    settings: Mapping[str, str]
