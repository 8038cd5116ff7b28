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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from amnesia_bench.modeling import HypeNetCache
from amnesia_bench.modeling.cache_layers import LightningLayer, WindowLayer
from amnesia_bench.modeling.hybrid_cache import BlockLayer
from amnesia_bench.modeling.packing import copy_to_device

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
            None if isinstance(layer, BlockLayer) else copied(vars(layer)) for layer in self.layers
        )
        return CacheSnapshot(self.get_seq_length(), states)

    def resume(self, snapshot: CacheSnapshot) -> None:
        """Reset the cache to one of its snapshots; tokens after the snapshot are dropped."""
        for layer, state in zip(self.layers, snapshot.states, strict=True):
            if isinstance(layer, BlockLayer):
                layer.crop(snapshot.length - layer.get_seq_length())
            elif state is not None:
                # Copy the state: the layer may overwrite it, but the snapshot must stay reusable.
                vars(layer).update(copied(state))


def copied(value: Any) -> Any:
    """Return a copy of the attributes of a cache layer: tensors are cloned, dicts are copied."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
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
        type(layer) in (BlockLayer, LightningLayer, WindowLayer, DynamicSlidingWindowLayer)
        for layer in cache.layers
    )


class JoinedRows:
    """A batch cache that is filled with rows of other caches.

    The first row that is added allocates the memory of all B rows, and each row is copied into its
    place.

    Args:
        empty: a new cache of the model.
        num_rows: number of rows, B.
        num_tokens: number of tokens of the longest row.
    """

    def __init__(self, empty: Cache | None, num_rows: int, num_tokens: int) -> None:
        assert empty is not None
        self.cache = empty
        self._num_rows = num_rows
        self._num_tokens = num_tokens
        self._filled = 0

    def add(self, cache: Cache | None, rows: Sequence[int], *, release: bool = False) -> None:
        """Append rows of `cache`, which all end in its last column.

        Args:
            cache: the cache of the rows. It may be longer than this batch if its first columns are
                padding in all chosen rows.
            rows: the indices of the rows to append, in this order; one may occur several times.
            release: whether to free each layer of `cache` as soon as it has been copied.
        """
        assert cache is not None
        place = slice(self._filled, self._filled + len(rows))
        for source, target in zip(cache.layers, self.cache.layers, strict=True):
            if isinstance(source, BlockLayer) and isinstance(target, BlockLayer):
                self._add_keys(source, target, rows, place)
            elif isinstance(source, LightningLayer) and isinstance(target, LightningLayer):
                self._add_state(source, target, rows, place)
            elif isinstance(source, WindowLayer) and isinstance(target, WindowLayer):
                self._add_window(source, target, rows, place)
            elif isinstance(source, DynamicSlidingWindowLayer):
                assert isinstance(target, DynamicSlidingWindowLayer)
                self._add_sliding(source, target, rows, place)
            if release:
                source.reset()
        self._filled += len(rows)

    def _add_keys(
        self, source: BlockLayer, target: BlockLayer, rows: Sequence[int], place: slice
    ) -> None:
        assert source.keys is not None
        assert source.values is not None
        keys_values = (source.keys, source.values)  # [N, G, L, D]
        if target.keys is None:
            target.update(*(self._zeros(x) for x in keys_values))
        assert target.keys is not None
        assert target.values is not None
        columns = min(self._num_tokens, source.get_seq_length())
        for joined, own in zip((target.keys, target.values), keys_values, strict=True):
            _last(joined, columns)[place] = _rows(_last(own, columns), rows)

    def _zeros(self, like: Tensor) -> Tensor:
        """Return zeros [B, G, L, D] as an expanded scalar, of which the layer makes a full copy."""
        shape = (self._num_rows, like.shape[1], self._num_tokens, like.shape[3])
        return like.new_zeros(()).expand(shape)

    def _add_state(
        self, source: LightningLayer, target: LightningLayer, rows: Sequence[int], place: slice
    ) -> None:
        assert source.state is not None
        if target.state is None:
            states = [
                None if x is None else x.new_empty(self._num_rows, *x.shape[1:])
                for x in source.states
            ]
            target.restore(states[0], self._num_tokens, states[1])
        for joined, own in zip(target.states, source.states, strict=True):
            if joined is not None and own is not None:
                joined[place] = _rows(own, rows)  # [N, H, K, V]; a convolution's tail [N, R, C]

    def _add_window(
        self, source: WindowLayer, target: WindowLayer, rows: Sequence[int], place: slice
    ) -> None:
        assert source.keys is not None
        assert source.values is not None
        keys_values = (source.keys, source.values)
        stored = min(self._num_tokens, source.columns)
        columns = max(stored, target.columns)
        if columns > target.columns:
            grown = [
                x.new_zeros(self._num_rows, x.shape[1], columns, x.shape[3]) for x in keys_values
            ]
            for new, old in zip(grown, target.states, strict=True):
                if old is not None:
                    _last(new, old.shape[2]).copy_(old)
            target.restore(grown[0], self._num_tokens, grown[1])
        assert target.keys is not None
        assert target.values is not None
        for joined, own in zip((target.keys, target.values), keys_values, strict=True):
            _last(joined, stored)[place] = _rows(_last(own, stored), rows)

    def _add_sliding(
        self,
        source: DynamicSlidingWindowLayer,
        target: DynamicSlidingWindowLayer,
        rows: Sequence[int],
        place: slice,
    ) -> None:
        assert source.keys is not None
        assert source.values is not None
        keys_values = (source.keys, source.values)
        # The next token itself is the last column of the window, and is not cached yet.
        columns = min(self._num_tokens, target.sliding_window - 1)
        if not target.is_initialized:
            target.lazy_initialization(*keys_values)
            target.keys, target.values = (
                x.new_zeros(self._num_rows, x.shape[1], columns, x.shape[3]) for x in keys_values
            )
            target.cumulative_length = self._num_tokens
        stored = min(columns, source.keys.shape[2])
        for joined, own in zip((target.keys, target.values), keys_values, strict=True):
            assert joined is not None
            _last(joined, stored)[place] = _rows(_last(own, stored), rows)


def _last(x: Tensor, columns: int) -> Tensor:
    """Return the last columns of keys or values [B, G, L, D]."""
    return x[:, :, x.shape[2] - columns :]


def _rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    """Return the chosen rows of a tensor; one row that repeats is returned once, to be expanded."""
    first, count = rows[0], len(rows)
    if list(rows) == list(range(first, first + count)):
        return x[first : first + count]
    if all(row == first for row in rows):
        return x[first : first + 1]
    return x.index_select(0, copy_to_device(torch.tensor(rows), x.device))


@dataclass(frozen=True, kw_only=True)
class RowCache:
    """The size of one row's cache, measured on a cache that contains tokens.

    Attributes:
        token_bytes: the bytes per token of all layers that keep every token.
        windows: the bytes per token and the window in tokens of each sliding-window layer.
        state_bytes: the bytes of everything that does not grow.
    """

    token_bytes: float
    windows: tuple[tuple[float, int], ...]
    state_bytes: float

    @classmethod
    def measure(cls, cache: Cache, config: Any) -> RowCache:
        """Measure a cache of one row; `config` is the model's config."""
        token_bytes = state_bytes = 0.0
        windows = []
        for layer in getattr(cache, "layers", ()):
            keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
            if isinstance(keys, Tensor) and isinstance(values, Tensor) and keys.numel():
                per_token = (keys.nbytes + values.nbytes) / keys.shape[2]
                window = getattr(layer, "sliding_window", None)
                if isinstance(layer, WindowLayer):
                    window = config.window_size
                if window is None:
                    token_bytes += per_token
                else:
                    windows.append((per_token, window))
            for states in ("recurrent_states", "conv_states"):
                tensors = getattr(layer, states, {}).values()
                state_bytes += sum(x.nbytes for x in tensors if isinstance(x, Tensor))
        return cls(token_bytes=token_bytes, windows=tuple(windows), state_bytes=state_bytes)

    def bytes_at(self, num_tokens: int) -> float:
        """Return the bytes of the cache after `num_tokens` tokens."""
        sliding = sum(size * min(num_tokens, window) for size, window in self.windows)
        return self.token_bytes * num_tokens + sliding + self.state_bytes
