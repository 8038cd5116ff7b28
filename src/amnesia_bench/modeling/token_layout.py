"""Compute the layout of the tokens of one forward pass: positions, padding and documents.

Shapes: B batch, T tokens of this forward pass, P tokens that are already cached.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .hybrid_config import HybridConfig
from .input_errors import InvalidModelInputError
from .packing import Boundaries, PackedRows, PaddedRows


@dataclass(frozen=True)
class TokenInputs:
    """The arguments of a forward pass that determine the layout of its tokens.

    The padding mask [B, P + T] is 0 for padding, which may be on either side. For one new token per
    row, it may also be [B, 1, 1, P + 1] if all padding is on the left: then a decode step reads
    nothing back from the device.
    """

    batch: int
    num_tokens: int
    num_cached: int
    device: torch.device
    attention_mask: Tensor | None
    position_ids: Tensor | None  # [1 or B, T]
    cu_seqlens: Boundaries | None
    has_cache: bool  # whether the caller passed a cache, even an empty one

    @property
    def promises_left_padding(self) -> bool:
        """Whether the padding mask has the shape for one new token per row."""
        shape = (self.batch, 1, 1, self.num_cached + 1)
        mask = self.attention_mask
        return self.num_tokens == 1 and isinstance(mask, Tensor) and mask.shape == shape


@dataclass(frozen=True)
class TokenLayout:
    """The checked layout, which is computed once per forward pass and shared by all layers.

    `attention_mask` is None if no cached or new token is padding; `padding` is None if no new token
    is padding. `left_padded` states that the caller promised to pad on the left only.
    """

    position_ids: Tensor  # [1 or B, T]
    attention_mask: Tensor | None  # [B, P + T] bool
    padding: PaddedRows | None
    packed: PackedRows | None
    left_padded: bool = False


def lay_out(inputs: TokenInputs, config: HybridConfig) -> TokenLayout:
    """Check the inputs, and return their layout: positions, padding and documents.

    Without `position_ids`, a token's position is the number of tokens before it in its document,
    not counting padding.

    Raises:
        InvalidModelInputError: the input is empty, a row contains only padding, the mask or the
            positions have the wrong shape, packing is combined with padding or a cache, the
            boundaries are invalid, or in a model with RoPE a position is negative or not below
            `max_position_embeddings`.
    """
    if inputs.batch == 0 or inputs.num_tokens == 0:
        raise InvalidModelInputError(
            f"input_ids is empty: shape [{inputs.batch}, {inputs.num_tokens}]",
            hint="Pass at least one token per row.",
        )
    valid, valid_new = _valid_tokens(inputs)
    packed = _packed_rows(inputs, valid)
    if inputs.position_ids is not None:
        positions = inputs.position_ids
        if positions.ndim != 2 or positions.shape[1] != inputs.num_tokens:
            raise InvalidModelInputError(
                f"position_ids has shape {tuple(positions.shape)}, expected "
                f"[{inputs.batch}, {inputs.num_tokens}]"
            )
    elif packed is not None:
        positions = packed.positions()
    elif valid is not None:
        positions = (valid.long().cumsum(dim=1) - 1).clamp(min=0)[:, inputs.num_cached :]
    else:
        start, stop = inputs.num_cached, inputs.num_cached + inputs.num_tokens
        positions = torch.arange(start, stop, device=inputs.device)[None]
    _check_positions(positions, inputs, config)
    padding = None if valid_new is None else PaddedRows.from_mask(valid_new, inputs.device)
    return TokenLayout(positions, valid, padding, packed, inputs.promises_left_padding)


def _valid_tokens(inputs: TokenInputs) -> tuple[Tensor | None, Tensor | None]:
    """Return which tokens are valid: all tokens on the device, and new ones in host memory.

    Either is None if it contains no padding. A mask [B, P + T] is copied from the device once.
    """
    mask = inputs.attention_mask
    if mask is None:
        return None, None
    if inputs.promises_left_padding:
        return mask[:, 0, 0].to(device=inputs.device, dtype=torch.bool), None
    expected = (inputs.batch, inputs.num_cached + inputs.num_tokens)
    if not isinstance(mask, Tensor) or mask.shape != expected:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise InvalidModelInputError(
            f"attention_mask is {shape}, expected {expected}: cached and new tokens of each row",
            hint="Linear layers only support padding masks, not masks over pairs of tokens.",
        )
    valid = mask.to(dtype=torch.bool)
    on_host = valid.cpu()
    if bool(on_host.all()):
        return None, None
    # In a chunked prefill, which passes a cache, the first chunk of a row may be only padding.
    if not inputs.has_cache:
        refuse_rows_without_tokens(on_host)
    new_tokens = on_host[:, inputs.num_cached :]
    return valid.to(inputs.device), None if bool(new_tokens.all()) else new_tokens


def refuse_rows_without_tokens(attention_mask: Tensor) -> None:
    """Refuse a padding mask [B, T] with a row that contains only padding.

    Raises:
        InvalidModelInputError: a row contains only padding.
    """
    empty = (~attention_mask.bool().any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise InvalidModelInputError(
            f"attention_mask marks every token of row {empty[0]} as padding",
            hint="Drop rows without tokens.",
        )


def _packed_rows(inputs: TokenInputs, valid: Tensor | None) -> PackedRows | None:
    is_single_row = inputs.batch == 1 and not inputs.has_cache
    if inputs.cu_seqlens is None:
        positions = inputs.position_ids
        if positions is None or inputs.has_cache or inputs.attention_mask is not None:
            return None
        if not is_single_row and bool((positions.diff(dim=1) < 0).any()):
            raise InvalidModelInputError(
                f"position_ids restart inside {inputs.batch} rows",
                hint="Pack documents into one row.",
            )
        return PackedRows.from_restarts(positions) if is_single_row else None
    if not is_single_row:
        conflict = f"{inputs.batch} rows" if inputs.batch != 1 else "past_key_values"
        raise InvalidModelInputError(
            f"cu_seqlens with {conflict}", hint="Pack documents into one row, and use no cache."
        )
    if valid is not None:
        raise InvalidModelInputError(
            "cu_seqlens together with padding in attention_mask",
            hint="Leave attention_mask out; make padding a separate document.",
        )
    return PackedRows.from_cu_seqlens(inputs.cu_seqlens, inputs.num_tokens, inputs.device)


def _check_positions(positions: Tensor, inputs: TokenInputs, config: HybridConfig) -> None:
    if not config.uses_positions:
        return
    limit = config.max_position_embeddings
    explicit = inputs.position_ids is not None
    if not explicit and inputs.num_cached + inputs.num_tokens <= limit:
        return  # without a copy of the positions from the device
    last = int(positions.max())
    if last >= limit or int(positions.min()) < 0:
        wrong = last if last >= limit else int(positions.min())
        raise InvalidModelInputError(
            f"position {wrong} is outside max_position_embeddings ({limit})",
            hint="Shorten the input, or raise max_position_embeddings if the model allows it.",
        )
