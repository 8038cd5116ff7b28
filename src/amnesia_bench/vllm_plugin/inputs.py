"""What the layers of one forward pass share."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LayerInputs(NamedTuple):
    """Positions and what follows from them; T tokens, D head dim."""

    positions: Tensor  # [T]
    softmax_rotation: tuple[Tensor, Tensor] | None  # cos, sin [1, T, D]
    linear_rotation: tuple[Tensor, Tensor] | None
    query_scale: Tensor | None  # [T, 1, 1] or [1, 1, 1], a factor on the queries of softmax layers
