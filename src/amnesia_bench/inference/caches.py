"""KV caches that can be truncated to an earlier length, copied to several rows, and joined.

`HypeNetCache` supports truncation itself. In transformers' `DynamicCache`, the attention layers are
replaced by layers that grow in place, as in `HypeNetCache`. Its other layers (linear states,
convolution tails, sliding windows) are copied into each snapshot: they are small, and transformers
updates them in place.

Joined rows all end in the same column: shorter rows are padded with zeros on the left, and an
attention mask must hide this padding. Padding does not affect linear states, which are computed
from the real tokens only.

Shapes: B rows of the batch, N rows of one added cache, G key/value heads, L cached tokens, D head
dim, H linear heads, K/V state dims.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from amnesia_bench.modeling import HypeNetCache
from amnesia_bench.modeling.cache_layers import LightningLayer, WindowLayer
from amnesia_bench.modeling.hybrid_cache import BlockLayer

# Cache layers of transformers that can be copied: their attributes are tensors, numbers and dicts
# that no other object shares.
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
    """The length of a `ResumableCache`, and copies of the layers that cannot be truncated."""

    length: int
    states: tuple[dict[str, Any] | None, ...]


class ResumableCache(DynamicCache):
    """A `DynamicCache` with the methods `snapshot` and `resume`, as in `HypeNetCache`.

    Args:
        config: the model's config; it determines the class of each cache layer.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.layers = [
            BlockLayer() if type(layer) is DynamicLayer else layer for layer in self.layers
        ]

    @property
    def unsupported_layer(self) -> str | None:
        """The class name of the first layer that does not support snapshots, or None."""
        names = (type(layer).__name__ for layer in self.layers)
        return next((name for name in names if name not in _COPYABLE), None)

    def snapshot(self) -> CacheSnapshot:
        """Return a snapshot of the cache, which `resume` can restore any number of times."""
        states = tuple(
            None if isinstance(layer, BlockLayer) else _copied(vars(layer)) for layer in self.layers
        )
        return CacheSnapshot(self.get_seq_length(), states)

    def resume(self, snapshot: CacheSnapshot) -> None:
        """Reset the cache to one of its snapshots; tokens after the snapshot are dropped."""
        for layer, state in zip(self.layers, snapshot.states, strict=True):
            if isinstance(layer, BlockLayer):
                layer.crop(snapshot.length - layer.get_seq_length())
            elif state is not None:
                # Copy the state: the layer may overwrite it, but the snapshot must stay reusable.
                vars(layer).update(_copied(state))


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return value


def fork(cache: Cache, empty: Cache, rows: int) -> Cache:
    """Fill `empty` with `rows` copies of the single row of `cache`, and return it.

    Args:
        cache: a cache with one row, possibly without tokens; it stays unchanged.
        empty: a new cache of the same class.
        rows: number of copies.
    """
    index: Any = torch.zeros(rows, dtype=torch.long)
    for i, layer in enumerate(cache.layers):
        if isinstance(layer, BlockLayer):
            target = empty.layers[i]
            assert isinstance(target, BlockLayer)
            if layer.keys is not None and layer.values is not None:
                target.update(*(x.expand(rows, -1, -1, -1) for x in (layer.keys, layer.values)))
            continue
        # Copy the layer's dicts as well, since `reorder_cache` replaces their items.
        layer_copy = copy.copy(layer)
        vars(layer_copy).update({k: dict(v) for k, v in vars(layer).items() if isinstance(v, dict)})
        layer_copy.reorder_cache(index)
        empty.layers[i] = layer_copy
    return empty


def can_resume(cache: Cache) -> bool:
    """Return whether this cache supports `snapshot` and `resume`."""
    if isinstance(cache, ResumableCache):
        return cache.unsupported_layer is None
    return isinstance(cache, HypeNetCache)


def can_join(cache: Cache | None) -> bool:
    """Return whether `JoinedRows` supports all layer classes of this cache."""
    return cache is not None and all(
        type(layer) in (BlockLayer, LightningLayer, WindowLayer) for layer in cache.layers
    )


class JoinedRows:
    """A batch cache that is filled with the rows of other caches.

    The first `add` allocates the memory of all B rows, and each row is copied into its place.

    Args:
        empty: a new cache of the model.
        num_rows: number of rows, B.
        num_tokens: number of prompt tokens of the longest row.
    """

    def __init__(self, empty: Cache | None, num_rows: int, num_tokens: int) -> None:
        assert empty is not None
        self.cache = empty
        self._num_rows = num_rows
        self._num_tokens = num_tokens
        self._filled = 0

    def add(self, cache: Cache | None, num_rows: int) -> None:
        """Append the N = `num_rows` rows of `cache`, which have equal lengths and no padding."""
        assert cache is not None
        place = slice(self._filled, self._filled + num_rows)
        for source, target in zip(cache.layers, self.cache.layers, strict=True):
            if isinstance(source, BlockLayer) and isinstance(target, BlockLayer):
                self._add_keys(source, target, place)
            elif isinstance(source, LightningLayer) and isinstance(target, LightningLayer):
                self._add_state(source, target, place)
            elif isinstance(source, WindowLayer) and isinstance(target, WindowLayer):
                self._add_window(source, target, place)
        self._filled += num_rows

    def _add_keys(self, source: BlockLayer, target: BlockLayer, place: slice) -> None:
        assert source.keys is not None
        assert source.values is not None
        keys_values = (source.keys, source.values)  # [N, G, L, D]
        if target.keys is None:
            target.update(*(self._zeros(x) for x in keys_values))
        assert target.keys is not None
        assert target.values is not None
        start = self._num_tokens - source.get_seq_length()
        target.keys[place, :, start:], target.values[place, :, start:] = keys_values

    def _zeros(self, like: Tensor) -> Tensor:
        """Return zeros [B, G, L, D] as an expanded scalar, of which the layer makes a full copy."""
        shape = (self._num_rows, like.shape[1], self._num_tokens, like.shape[3])
        return like.new_zeros(()).expand(shape)

    def _add_state(self, source: LightningLayer, target: LightningLayer, place: slice) -> None:
        assert source.state is not None
        if target.state is None:
            states = [
                None if x is None else x.new_empty(self._num_rows, *x.shape[1:])
                for x in source.states
            ]
            target.restore(states[0], self._num_tokens, states[1])
        for joined, state in zip(target.states, source.states, strict=True):
            if joined is not None and state is not None:
                joined[place] = state  # [N, H, K, V]; the tail of a convolution [N, R, C]

    def _add_window(self, source: WindowLayer, target: WindowLayer, place: slice) -> None:
        assert source.keys is not None
        assert source.values is not None
        columns = max(source.columns, target.columns)
        if columns > target.columns:
            old = target.states
            grown = [
                x.new_zeros(self._num_rows, x.shape[1], columns, x.shape[3])
                for x in (source.keys, source.values)
            ]
            for new, stored in zip(grown, old, strict=True):
                if stored is not None:
                    new[:, :, columns - stored.shape[2] :] = stored
            target.restore(grown[0], self._num_tokens, grown[1])
        assert target.keys is not None
        assert target.values is not None
        start = columns - source.columns
        target.keys[place, :, start:], target.values[place, :, start:] = source.keys, source.values
