"""Describe documents that are packed in a row, and batches with padding.

Shapes: B batch, T tokens of this forward pass, N documents, V valid (not padding) tokens.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .input_errors import InvalidModelInputError


@dataclass(frozen=True)
class PackedRows:
    """Documents packed in one row; document n consists of tokens bounds[n] to bounds[n + 1] - 1.

    `cu_seqlens` contains the same boundaries as an int32 tensor on the row's device. Build one
    object per batch and pass it to every layer: fla caches its chunk index by the identity of the
    tensor, and thanks to `bounds` no layer copies the boundaries from the device.
    """

    bounds: tuple[int, ...]
    cu_seqlens: Tensor

    @classmethod
    def from_cu_seqlens(
        cls, cu_seqlens: Boundaries, num_tokens: int, device: torch.device
    ) -> PackedRows:
        """Build the object from boundaries, or return a `PackedRows` unchanged.

        The boundaries must start at 0, increase strictly and end at `num_tokens`.

        Raises:
            InvalidModelInputError: the boundaries are invalid. An empty document would corrupt the
                results of fla's kernels, and tokens after the last boundary would have undefined
                gradients.
        """
        if isinstance(cu_seqlens, PackedRows):
            cu_seqlens._check_end(num_tokens)
            return cu_seqlens
        flat = cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else list(cu_seqlens)
        if isinstance(cu_seqlens, Tensor) and cu_seqlens.ndim != 1:
            raise InvalidModelInputError(
                f"cu_seqlens has {cu_seqlens.ndim} dimensions",
                hint="Pass a flat list of boundaries.",
            )
        bounds = tuple(int(bound) for bound in flat)
        if bounds != tuple(flat):
            raise InvalidModelInputError(f"cu_seqlens is {flat}; boundaries are whole numbers")
        if len(bounds) < 2 or bounds[0] != 0:
            raise InvalidModelInputError(
                f"cu_seqlens is {_format_bounds(bounds)}; it must start with 0 and have an end",
                hint="For documents of 3 and 5 tokens pass [0, 3, 8].",
            )
        for n, (start, stop) in enumerate(itertools.pairwise(bounds)):
            if stop <= start:
                raise InvalidModelInputError(
                    f"cu_seqlens is not increasing: entry {n + 1} is {stop} after {start}",
                    hint="Leave empty documents out.",
                )
        packed = cls(bounds, torch.tensor(bounds, dtype=torch.int32, device=device))
        packed._check_end(num_tokens)
        return packed

    def _check_end(self, num_tokens: int) -> None:
        if self.bounds[-1] != num_tokens:
            raise InvalidModelInputError(
                f"cu_seqlens ends at {self.bounds[-1]}, but the row has {num_tokens} tokens",
                hint="Make trailing padding a separate document.",
            )

    @classmethod
    def from_restarts(cls, position_ids: Tensor) -> PackedRows | None:
        """Build the object from positions [1, T] that restart at 0 in each document.

        This is the convention of transformers. If the positions do not restart, return None.
        """
        starts = (position_ids[0] == 0).nonzero().flatten().tolist()
        if len(starts) < 2 or starts[0] != 0:
            return None
        num_tokens = position_ids.shape[1]
        return cls.from_cu_seqlens([*starts, num_tokens], num_tokens, position_ids.device)

    @functools.cached_property
    def cu_seqlens_cpu(self) -> Tensor:
        """The boundaries as an int32 tensor on the CPU."""
        return torch.tensor(self.bounds, dtype=torch.int32)

    @property
    def documents(self) -> tuple[tuple[int, int], ...]:
        """The token range (start, stop) of each document."""
        return tuple(itertools.pairwise(self.bounds))

    def split(self, row: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Split a tensor into the documents of its row; `dim` is the dimension of the tokens."""
        return split_rows(row, [stop - start for start, stop in self.documents], dim)

    @property
    def longest(self) -> int:
        """The number of tokens of the longest document."""
        return max(stop - start for start, stop in self.documents)

    def positions(self) -> Tensor:
        """Return the position of each token within its document, [1, T]."""
        device = self.cu_seqlens.device
        return torch.cat([torch.arange(b - a, device=device) for a, b in self.documents])[None]


# Types that callers may pass as boundaries.
Boundaries: TypeAlias = Tensor | Sequence[int] | PackedRows


@dataclass(frozen=True)
class PaddedRows:
    """The indices of the valid tokens of a padded batch, row by row.

    Linear layers process only the valid tokens, packed into one row with one document per batch
    row, which continues the state of that batch row. So padding on either side neither enters a
    state nor makes it decay.
    """

    token_index: Tensor  # [V] indices of the valid tokens in the batch flattened to B * T
    row_index: Tensor  # [N] batch rows with at least one valid token in this forward pass
    packed: PackedRows

    @classmethod
    def from_mask(cls, valid: Tensor) -> PaddedRows:
        """Build the object from a bool mask [B, T], which is True for valid tokens."""
        lengths = valid.sum(dim=1)
        row_index = lengths.nonzero().flatten()
        bounds = torch.cat([lengths.new_zeros(1), lengths[row_index].cumsum(0)])
        return cls(
            token_index=valid.flatten().nonzero().flatten(),
            row_index=row_index,
            packed=PackedRows(tuple(bounds.tolist()), bounds.to(torch.int32)),
        )

    def gather(self, x: Tensor) -> Tensor:
        """Return the valid tokens of a padded batch [B, T, ...], packed in one row [1, V, ...]."""
        return x.flatten(0, 1)[self.token_index][None]

    def scatter(self, row: Tensor, batch: int, num_tokens: int) -> Tensor:
        """Return a packed row [1, V, ...] as a padded batch [B, T, ...] with zeros for padding."""
        output = row.new_zeros(batch * num_tokens, *row.shape[2:])
        output = output.index_copy(0, self.token_index, row[0])
        return output.unflatten(0, (batch, num_tokens))

    def scatter_states(self, new: Tensor, old: Tensor | None, batch: int) -> Tensor:
        """Return the states of all rows [B, ...]: `new` [N, ...] for rows with valid tokens.

        The state of a row that contains only padding in this forward pass is unchanged.
        """
        states = new.new_zeros(batch, *new.shape[1:]) if old is None else old
        return states.index_copy(0, self.row_index, new)


def split_rows(row: Tensor, tokens: Sequence[int], dim: int) -> tuple[Tensor, ...]:
    """Split a tensor along `dim` into consecutive runs with the given numbers of tokens.

    The function does not slice, because the gradient of every slice would be as large as the row.
    Autograd might concatenate the gradients of runs of [B, T, H, D] in channels-last memory order,
    so the dimensions after T are flattened for the split.
    """
    trailing_shape = row.shape[dim + 1 :]
    runs = row.flatten(dim + 1).split(list(tokens), dim=dim)
    return tuple(run.unflatten(dim + 1, trailing_shape) for run in runs)


def _format_bounds(bounds: tuple[int, ...]) -> str:
    return str(list(bounds)) if len(bounds) <= 8 else f"[{bounds[0]}, {bounds[1]}, ...]"
