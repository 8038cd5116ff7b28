"""Group the tokens of a batch: documents packed in a row, and padding.

Shapes: B batch, T tokens of this forward, N documents, V valid (not padding) tokens.
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
    """Documents laid end to end in one row; document n is tokens [bounds[n], bounds[n + 1]).

    `cu_seqlens` holds the same boundaries as an int32 tensor on the row's device. Build one per
    batch and pass the same object to every layer: fla caches its chunk index by identity, and
    `bounds` keeps the layers from copying boundaries off the device again.
    """

    bounds: tuple[int, ...]
    cu_seqlens: Tensor

    @classmethod
    def from_cu_seqlens(
        cls, cu_seqlens: Boundaries, num_tokens: int, device: torch.device
    ) -> PackedRows:
        """Check the boundaries: they start at 0, increase strictly and end at `num_tokens`.

        A `PackedRows` is returned unchanged.

        Raises:
            InvalidModelInputError: the boundaries are invalid. An empty document corrupts fla's
                kernels, and tokens after the last boundary would get undefined gradients.
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
        """Read transformers' convention: positions [1, T] that restart at 0 in each document."""
        starts = (position_ids[0] == 0).nonzero().flatten().tolist()
        if len(starts) < 2 or starts[0] != 0:
            return None
        num_tokens = position_ids.shape[1]
        return cls.from_cu_seqlens([*starts, num_tokens], num_tokens, position_ids.device)

    @functools.cached_property
    def cu_seqlens_cpu(self) -> Tensor:
        """The boundaries as an int32 tensor in host memory."""
        return torch.tensor(self.bounds, dtype=torch.int32)

    @property
    def documents(self) -> tuple[tuple[int, int], ...]:
        """The (start, stop) of each document."""
        return tuple(itertools.pairwise(self.bounds))

    def split(self, row: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Return the documents of a row that lie along `dim`."""
        return split_rows(row, [stop - start for start, stop in self.documents], dim)

    @property
    def longest(self) -> int:
        """The number of tokens of the longest document."""
        return max(stop - start for start, stop in self.documents)

    def positions(self) -> Tensor:
        """Return the position of each token inside its document: [1, T]."""
        device = self.cu_seqlens.device
        return torch.cat([torch.arange(b - a, device=device) for a, b in self.documents])[None]


# Types that callers may pass as boundaries.
Boundaries: TypeAlias = Tensor | Sequence[int] | PackedRows


@dataclass(frozen=True)
class PaddedRows:
    """The positions of the valid tokens of a padded batch, row by row.

    Linear layers process only the valid tokens, packed as one row of documents that each continue
    the state of their batch row. So padding neither enters nor decays a state, on either side.
    """

    token_index: Tensor  # [V] positions of valid tokens in the batch flattened to B * T
    row_index: Tensor  # [N] batch rows with at least one valid token in this forward
    packed: PackedRows

    @classmethod
    def from_mask(cls, valid: Tensor) -> PaddedRows:
        """Build it from a bool mask [B, T]."""
        lengths = valid.sum(dim=1)
        row_index = lengths.nonzero().flatten()
        bounds = torch.cat([lengths.new_zeros(1), lengths[row_index].cumsum(0)])
        return cls(
            token_index=valid.flatten().nonzero().flatten(),
            row_index=row_index,
            packed=PackedRows(tuple(bounds.tolist()), bounds.to(torch.int32)),
        )


def split_rows(row: Tensor, tokens: Sequence[int], dim: int) -> tuple[Tensor, ...]:
    """Split the tokens along `dim` into runs.

    Slicing is avoided because the gradient of every slice would be as large as the row. Autograd
    might concatenate the gradients of runs of [B, T, H, D] in channels-last memory order, so the
    dimensions after T are flattened for the split.
    """
    trailing_shape = row.shape[dim + 1 :]
    runs = row.flatten(dim + 1).split(list(tokens), dim=dim)
    return tuple(run.unflatten(dim + 1, trailing_shape) for run in runs)


def _format_bounds(bounds: tuple[int, ...]) -> str:
    return str(list(bounds)) if len(bounds) <= 8 else f"[{bounds[0]}, {bounds[1]}, ...]"
