"""One cache for rows of unequal length, each copied into its place after it was read alone.

All rows end in the same column: shorter ones are padded on the left. Padding holds zeros, which an
attention mask must hide; to a linear state it is nothing, since only tokens went into it.

Shapes: B rows of the batch, N rows of one copy, G key/value heads, L cached tokens, D head dim,
H linear heads, K/V state dims.
"""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import Cache

from amnesia_bench.modeling.hybrid_cache import BlockLayer, LightningLayer


def can_join(cache: Cache | None) -> bool:
    """Whether rows of such caches can be put into one: all layers are ours."""
    return cache is not None and all(
        type(layer) in (BlockLayer, LightningLayer) for layer in cache.layers
    )


class JoinedRows:
    """A batch's cache that is filled row by row.

    Its memory is taken with the first rows; no row is kept twice.

    Args:
        empty: a new cache of the model.
        num_rows: B.
        num_tokens: of the longest row, without new tokens.
    """

    def __init__(self, empty: Cache | None, num_rows: int, num_tokens: int) -> None:
        assert empty is not None
        self.cache = empty
        self._num_rows = num_rows
        self._num_tokens = num_tokens
        self._filled = 0

    def add(self, cache: Cache | None, num_rows: int) -> None:
        """Copy the next rows; `cache` holds N = `num_rows` of equal length, not padded."""
        assert cache is not None
        place = slice(self._filled, self._filled + num_rows)
        for source, target in zip(cache.layers, self.cache.layers, strict=True):
            if isinstance(source, BlockLayer) and isinstance(target, BlockLayer):
                self._add_keys(source, target, place)
            elif isinstance(source, LightningLayer) and isinstance(target, LightningLayer):
                self._add_state(source, target, place)
        self._filled += num_rows

    def _add_keys(self, source: BlockLayer, target: BlockLayer, place: slice) -> None:
        assert source.keys is not None
        assert source.values is not None
        held = (source.keys, source.values)  # [N, G, L, D]
        if target.keys is None:
            target.update(*(self._zeros(x) for x in held))
        assert target.keys is not None
        assert target.values is not None
        start = self._num_tokens - source.get_seq_length()
        target.keys[place, :, start:], target.values[place, :, start:] = held

    def _zeros(self, like: Tensor) -> Tensor:
        """Return [B, G, L, D] that take no memory of their own: the layer copies them."""
        shape = (self._num_rows, like.shape[1], self._num_tokens, like.shape[3])
        return like.new_zeros(()).expand(shape)

    def _add_state(self, source: LightningLayer, target: LightningLayer, place: slice) -> None:
        assert source.state is not None
        if target.state is None:
            state = source.state.new_empty(self._num_rows, *source.state.shape[1:])
            target.restore(state, self._num_tokens)
        assert target.state is not None
        target.state[place] = source.state  # [N, H, K, V]
