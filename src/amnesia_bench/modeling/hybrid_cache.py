"""The cache of a hybrid model: the KV cache of softmax layers and the states of linear layers.

transformers' `DynamicCache` copies all keys and values at each decode step, and loses the state
of linear layers without a convolution (only its convolution code sets `has_previous_state`). The
cache layers of this module replace those of transformers.

Cached tensors are detached: no gradient flows through them into earlier forward passes.

Shapes: B batch, G key/value heads, L cached tokens, D head dim, H linear heads, K/V state dims.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from .cache_layers import LightningLayer, WindowLayer
from .hybrid_config import HybridConfig
from .input_errors import InvalidModelInputError

BLOCK_TOKENS = 256


class BlockLayer(DynamicLayer):
    """Keys and values [B, G, L, D] of a softmax layer, in buffers with spare capacity.

    A full buffer grows by an eighth, or by at least a block, so copying costs O(1) per token.
    """

    is_compileable = False

    def __init__(self, **_: object) -> None:
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._length = 0
        super().__init__()

    @property
    def keys(self) -> Tensor | None:
        """The cached keys: a view of the buffer."""
        return None if self._buffers is None else self._buffers[0][:, :, : self._length]

    @keys.setter
    def keys(self, value: Tensor | None) -> None:
        # transformers' base class assigns None in its constructor and on reset.
        assert value is None
        self._buffers, self._length = None, 0

    @property
    def values(self) -> Tensor | None:
        """The cached values: a view of the buffer."""
        return None if self._buffers is None else self._buffers[1][:, :, : self._length]

    @values.setter
    def values(self, value: Tensor | None) -> None:
        assert value is None
        self._buffers, self._length = None, 0

    @property
    def capacity(self) -> int:
        """The number of tokens that fit into the buffer."""
        return 0 if self._buffers is None else self._buffers[0].shape[2]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Record dtype and device; `update` allocates the buffers for the first tokens."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, G, T, D]; return all keys and all values [B, G, L + T, D]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, stop = self._length, self._length + key_states.shape[2]
        if stop > self.capacity:
            self._grow(stop, key_states, value_states)
        assert self._buffers is not None
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop] = new.detach()
        self._length = stop
        if torch.is_grad_enabled():
            # Return copies: autograd may save these tensors, and later tokens overwrite the buffer.
            past_keys, past_values = (buffer[:, :, :start] for buffer in self._buffers)
            return (
                torch.cat([past_keys, key_states], dim=2),
                torch.cat([past_values, value_states], dim=2),
            )
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def _grow(self, needed: int, keys: Tensor, values: Tensor) -> None:
        room = max(BLOCK_TOKENS, needed // 8)
        capacity = (needed + room) // BLOCK_TOKENS * BLOCK_TOKENS
        grown = []
        for old, new in zip(self._buffers or (None, None), (keys, values), strict=True):
            buffer = new.new_empty(*new.shape[:2], capacity, new.shape[3])
            if old is not None:
                buffer[:, :, : self._length] = old[:, :, : self._length]
            grown.append(buffer)
        self._buffers = (grown[0], grown[1])

    def get_seq_length(self) -> int:
        """Return the number of cached tokens, including padding."""
        return self._length

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last |tokens_to_remove| tokens (transformers passes a negative number)."""
        self._length = max(0, self._length - abs(tokens_to_remove))

    def reset(self) -> None:
        """Remove all tokens; the base class in transformers 5.16 would only fill with zeros."""
        self.is_initialized = False
        self._buffers, self._length = None, 0

    def _map_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        if self._buffers is not None:
            self._buffers = (change(self._buffers[0]), change(self._buffers[1]))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select the rows of the chosen beams."""
        self._map_rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        self._map_rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the selected rows."""
        self._map_rows(lambda x: x[indices.to(x.device)])

    def offload(self) -> None:
        """Move the keys and values to the CPU."""
        self._map_rows(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Move the keys and values back to the device of the model."""
        self._map_rows(lambda x: x.to(self.device, non_blocking=True))


@dataclass(frozen=True, eq=False)
class PrefixSnapshot:
    """The length of a prefix, and the states of linear and sliding-window layers after it.

    A snapshot does not contain the keys and values of full softmax layers, which remain in the
    buffers of the cache.
    """

    length: int
    states: tuple[tuple[Tensor | None, ...], ...]
    seen_tokens: tuple[int, ...]


class HypeNetCache(Cache):
    """The cache of a hybrid model; `generate` creates one if none is passed.

    Args:
        config: determines the kind of each layer.
    """

    def __init__(self, config: HybridConfig) -> None:
        super().__init__(layers=_new_layers(config))
        # Weak references, so that the states of an unused snapshot are freed.
        self._live_snapshots: weakref.WeakSet[PrefixSnapshot] = weakref.WeakSet()

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of cached tokens with padding, also for a model of linear layers."""
        return cached_length(self)

    def snapshot(self) -> PrefixSnapshot:
        """Take a snapshot of the cache, to which `resume` can return later.

        Returns:
            The snapshot, a few megabytes of states.
        """
        states: list[tuple[Tensor | None, ...]] = []
        seen = []
        for layer in self.layers:
            small = layer if isinstance(layer, LightningLayer | WindowLayer) else None
            # States are replaced, never changed in place, so no copy is needed.
            states.append(() if small is None else small.states)
            seen.append(0 if small is None else small.seen_tokens)
        snapshot = PrefixSnapshot(cached_length(self), tuple(states), tuple(seen))
        self._live_snapshots.add(snapshot)
        return snapshot

    def resume(self, snapshot: PrefixSnapshot) -> None:
        """Return to a snapshot of this cache, and invalidate all longer snapshots.

        If a sequence has several snapshots, resume the longest first: tokens that are added after
        resuming a snapshot overwrite the keys and values of later tokens in place.

        Raises:
            InvalidModelInputError: the snapshot is not of this cache, or became invalid because a
                shorter one was resumed, the rows changed or the cache was reset.
        """
        if snapshot not in self._live_snapshots:
            raise InvalidModelInputError(
                f"this snapshot of {snapshot.length} tokens no longer matches the cache",
                hint="Resume longer prefixes before shorter ones, or take the snapshot again.",
            )
        self._live_snapshots -= {s for s in self._live_snapshots if s.length > snapshot.length}
        for layer, states, seen in zip(
            self.layers, snapshot.states, snapshot.seen_tokens, strict=True
        ):
            if isinstance(layer, BlockLayer):
                layer.crop(snapshot.length - layer.get_seq_length())
            elif isinstance(layer, LightningLayer | WindowLayer):
                layer.restore(states[0], seen, states[1])

    def reset(self) -> None:
        """Remove all tokens, and invalidate all snapshots."""
        super().reset()
        self._live_snapshots.clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Raise an error, since the state of a linear layer cannot be cropped; use `snapshot`."""
        raise InvalidModelInputError(
            "the cache of a hybrid model cannot be cropped: its linear layers keep no history",
            hint="Take cache.snapshot() at the prefix and cache.resume(...) it later.",
        )

    def reorder_cache(self, beam_idx: Any) -> None:
        """Select the rows of the chosen beams."""
        super().reorder_cache(beam_idx)
        self._live_snapshots.clear()

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        super().batch_repeat_interleave(repeats)
        self._live_snapshots.clear()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the selected rows."""
        super().batch_select_indices(indices)
        self._live_snapshots.clear()


def _new_layers(config: HybridConfig) -> list[Any]:
    def layer(kind: str) -> BlockLayer | WindowLayer | LightningLayer:
        if kind == "full_attention":
            return BlockLayer()
        return WindowLayer() if kind == "sliding_attention" else LightningLayer()

    return [layer(kind) for kind in config.layer_types]


def adopt_cache(cache: Any, config: HybridConfig, batch: int) -> Cache:
    """Return `cache` if it is of this model; convert an empty transformers cache in place.

    Raises:
        InvalidModelInputError: the cache is of another model or batch size, or is not empty.
    """
    if not isinstance(cache, Cache):
        raise InvalidModelInputError(
            f"past_key_values is a {type(cache).__name__}", hint="Pass a HypeNetCache(config)."
        )
    layers = _new_layers(config)
    if [type(layer) for layer in cache.layers] == [type(layer) for layer in layers]:
        rows = _cached_rows(cache)
        if rows not in (None, batch):
            raise InvalidModelInputError(
                f"past_key_values holds {rows} rows, but the input has {batch}",
                hint="Use batch_repeat_interleave or batch_select_indices of the cache.",
            )
        return cache
    if isinstance(cache, HypeNetCache):
        raise InvalidModelInputError(
            "past_key_values was made for a model with other layers",
            hint="Pass a HypeNetCache(model.config).",
        )
    if any(getattr(layer, "is_initialized", False) for layer in cache.layers):
        raise InvalidModelInputError(
            f"past_key_values is a {type(cache).__name__} that another model has filled",
            hint="Start with HypeNetCache(config), or leave past_key_values out.",
        )
    cache.layers = layers
    cache.layer_class_to_replicate = None
    return cache


def _cached_rows(cache: Cache) -> int | None:
    for layer in cache.layers:
        tensors = (layer.keys,) if isinstance(layer, BlockLayer) else getattr(layer, "states", ())
        if tensors and tensors[0] is not None:
            return int(tensors[0].shape[0])
    return None


def cached_length(cache: Cache) -> int:
    """Return the number of tokens in a cache that consists of the layers above."""
    layer = next(
        (layer for layer in cache.layers if isinstance(layer, BlockLayer)),
        cache.layers[0] if cache.layers else None,
    )
    if isinstance(layer, BlockLayer):
        return layer.get_seq_length()
    return layer.seen_tokens if isinstance(layer, LightningLayer | WindowLayer) else 0
