"""The cache layers of bounded size: states of linear layers, and keys and values of a window.

Their tensors are replaced and never changed in place, so a snapshot may keep references to them.

Shapes: B batch, T new tokens, G key/value heads, D head dim, L cached tokens, H linear heads,
K/V state dims, C channels of a convolution, R its number of earlier inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer


class LightningLayer(LinearAttentionLayer):
    """The states of a linear layer, and the number of tokens that it has processed.

    The recurrent state [B, H, K, V] is float32, or float64 for a float64 model. A layer with a
    convolution also has `tail`, the last inputs of the convolution [B, R, C]. The size of both is
    independent of the number of tokens.
    """

    is_compileable = False

    def __init__(self, **_: object) -> None:
        super().__init__()
        self.seen_tokens = 0

    @property
    def state(self) -> Tensor | None:
        """The state after the last token, or None before the first token."""
        state: Tensor | None = self.recurrent_states[0]
        return state

    @property
    def tail(self) -> Tensor | None:
        """The last inputs of the convolution, or None before the first token or without one."""
        tail: Tensor | None = self.conv_states[0]
        return tail

    @property
    def states(self) -> tuple[Tensor | None, Tensor | None]:
        """The recurrent state and the tail."""
        return self.state, self.tail

    def update_recurrent_state(
        self,
        recurrent_states: Tensor,
        state_idx: int = 0,
        *,
        num_tokens: int = 0,
        tail: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        """Store and return the state after `num_tokens` more tokens, and store the tail."""
        state = recurrent_states.detach()
        tail = None if tail is None else tail.detach()
        self.restore(state, self.seen_tokens + num_tokens, tail)
        return state

    def restore(self, state: Tensor | None, seen_tokens: int, tail: Tensor | None = None) -> None:
        """Set the states and their number of tokens; None is the state before the first token."""
        self.recurrent_states[0], self.conv_states[0] = state, tail
        self.seen_tokens = seen_tokens
        self.has_previous_state[0] = self.is_recurrent_states_initialized[0] = state is not None
        self.is_conv_states_initialized[0] = tail is not None

    def reset(self) -> None:
        """Remove the states without overwriting their tensors, which a snapshot may share."""
        self.restore(None, 0)

    def _map_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        for states in (self.recurrent_states, self.conv_states):
            if states[0] is not None:
                states[0] = change(states[0])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select the rows of the chosen beams."""
        self._map_rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        self._map_rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the selected rows."""
        self._map_rows(lambda x: x[indices.to(x.device)])


class WindowLayer(DynamicLayer):
    """The keys and values [B, G, L, D] that a sliding-window layer can still attend to.

    L is at most the window minus one token, plus padding between its tokens. `seen_tokens` counts
    all tokens that the layer has processed, with padding.
    """

    is_compileable = False
    is_sliding = True

    def __init__(self, **_: object) -> None:
        super().__init__()
        self.restore(None, 0)

    @property
    def states(self) -> tuple[Tensor | None, Tensor | None]:
        """The keys and the values, or None before the first token."""
        return self.keys, self.values

    @property
    def columns(self) -> int:
        """The number of tokens whose keys are stored, with padding."""
        return 0 if self.keys is None else int(self.keys.shape[2])

    def restore(self, keys: Tensor | None, seen_tokens: int, values: Tensor | None = None) -> None:
        """Set keys and values and their number of tokens; None stands for no tokens."""
        self.keys, self.values, self.seen_tokens = keys, values, seen_tokens
        self.is_initialized = keys is not None

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, keep: int = 0, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [B, G, T, D], and store the last `keep` tokens.

        Returns:
            The stored keys and values before this call, followed by the new ones [B, G, L + T, D].
        """
        if self.keys is None or self.values is None:
            keys, values = key_states, value_states
        else:
            keys = torch.cat([self.keys, key_states], dim=2)
            values = torch.cat([self.values, value_states], dim=2)
        self.dtype, self.device = keys.dtype, keys.device
        start = max(0, keys.shape[2] - keep)
        kept = [x.detach()[:, :, start:] for x in (keys, values)]
        if start > keep:
            # A view would keep all tokens of this call in memory.
            kept = [x.clone() for x in kept]
        self.restore(kept[0], self.seen_tokens + key_states.shape[2], kept[1])
        return keys, values

    def get_seq_length(self) -> int:
        """Return the number of tokens that the layer has processed, with padding."""
        return self.seen_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys of the next call and the position of the first one."""
        return self.columns + query_length, self.seen_tokens - self.columns

    def reset(self) -> None:
        """Remove all tokens without overwriting their tensors, which a snapshot may share."""
        self.restore(None, 0)

    def _map_rows(self, change: Callable[[Tensor], Tensor]) -> None:
        if self.keys is not None and self.values is not None:
            self.keys, self.values = change(self.keys), change(self.values)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select the rows of the chosen beams."""
        self._map_rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row `repeats` times."""
        self._map_rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the selected rows."""
        self._map_rows(lambda x: x[indices.to(x.device)])
