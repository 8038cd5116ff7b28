"""Caches that can go back to an earlier length, and be copied to more rows.

HypeNet's cache can by itself. transformers' `DynamicCache` is given layers that grow in place, as
HypeNet's do, and for its other layers (states, convolution tails, sliding windows) a snapshot
holds copies: they are small, and transformers writes states in place.

Shapes: B rows, G key/value heads, L cached tokens, D head dim.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from amnesia_bench.modeling import HypeNetCache
from amnesia_bench.modeling.hybrid_cache import BlockLayer

# Layers of transformers all of whose state lies in tensors, numbers and dicts of their own.
_COPYABLE = frozenset(
    (
        "BlockLayer",
        "DummyLayer",
        "DynamicIndexedLayer",
        "DynamicSlidingWindowLayer",
        "LinearAttentionAndFullAttentionLayer",
        "LinearAttentionAndSlidingWindowAttentionLayer",
        "LinearAttentionLayer",
    )
)


@dataclass(frozen=True, eq=False)
class CacheSnapshot:
    """The length of a `ResumableCache`, and copies of what its layers cannot cut back."""

    length: int
    states: tuple[dict[str, Any] | None, ...]


class ResumableCache(DynamicCache):
    """transformers' cache with `snapshot` and `resume`, as `HypeNetCache` has them.

    Args:
        config: of the model; tells the kind of each layer.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.layers = [
            BlockLayer() if type(layer) is DynamicLayer else layer for layer in self.layers
        ]

    @property
    def foreign_layer(self) -> str | None:
        """The class of a layer that no snapshot can be taken of, or None."""
        names = (type(layer).__name__ for layer in self.layers)
        return next((name for name in names if name not in _COPYABLE), None)

    def snapshot(self) -> CacheSnapshot:
        """Remember the present end of the cache, to resume from it later, more than once."""
        states = tuple(
            None if isinstance(layer, BlockLayer) else _copied(vars(layer)) for layer in self.layers
        )
        return CacheSnapshot(self.get_seq_length(), states)

    def resume(self, snapshot: CacheSnapshot) -> None:
        """Go back to a snapshot of this cache; what came after it may be overwritten."""
        for layer, state in zip(self.layers, snapshot.states, strict=True):
            if isinstance(layer, BlockLayer):
                layer.crop(snapshot.length - layer.get_seq_length())
            elif state is not None:
                # Copied again: the layer may write into it, and the snapshot may be needed again.
                vars(layer).update(_copied(state))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return value


def fork(cache: Cache, empty: Cache, rows: int) -> Cache:
    """Return `empty` filled with `rows` copies of the one row of `cache`, which stays as it is.

    Args:
        cache: of one row, perhaps without tokens.
        empty: a new cache of the same kind.
        rows: how many.
    """
    index: Any = torch.zeros(rows, dtype=torch.long)
    for i, layer in enumerate(cache.layers):
        if isinstance(layer, BlockLayer):
            target = empty.layers[i]
            assert isinstance(target, BlockLayer)
            if layer.keys is not None and layer.values is not None:
                target.update(*(x.expand(rows, -1, -1, -1) for x in (layer.keys, layer.values)))
            continue
        # The layer's dicts are copied too: they are written below, item by item.
        twin = copy.copy(layer)
        vars(twin).update({k: dict(v) for k, v in vars(layer).items() if isinstance(v, dict)})
        twin.reorder_cache(index)
        empty.layers[i] = twin
    return empty


def can_resume(cache: Cache) -> bool:
    """Whether the engine can take snapshots of this cache."""
    if isinstance(cache, ResumableCache):
        return cache.foreign_layer is None
    return isinstance(cache, HypeNetCache)
