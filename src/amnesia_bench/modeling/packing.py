"""Describe documents that are packed in a row, and batches with padding.

Shapes: B batch, T tokens of this forward pass, N documents, V valid (not padding) tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .input_errors import InvalidModelInputError

# fla's kernels are tuned for chunks of 64 tokens. On a CPU, 64 was faster than 32, 128 and 256 at
# H=16, K=V=128.
CHUNK = 64


@dataclass(frozen=True)
class ChunkTable:
    """The C chunks of at most `CHUNK` tokens into which kernels divide N packed documents."""

    index: Tensor  # [C, 2] int32: the document of each chunk, and its number within the document
    offsets: Tensor  # [N + 1] int32: the number of chunks before each document


@dataclass(frozen=True)
class PackedRows:
    """Documents packed in one row; document n consists of tokens bounds[n] to bounds[n + 1] - 1.

    `cu_seqlens` contains the same boundaries as an int32 tensor on the row's device, and `chunks`
    the chunks of the documents. Build one object per batch, and pass it to every layer. Then no
    layer copies boundaries to or from the device, and the launch of a kernel depends only on the
    shapes of these tensors.
    """

    bounds: tuple[int, ...]
    num_tokens: int
    longest: int  # the number of tokens of the longest document
    cu_seqlens: Tensor
    chunks: ChunkTable

    @classmethod
    def from_bounds(cls, bounds: tuple[int, ...], device: torch.device) -> PackedRows:
        """Build the object from boundaries that are known to be valid."""
        counts = [-(-(stop - start) // CHUNK) for start, stop in itertools.pairwise(bounds)]
        index = [(n, chunk) for n, count in enumerate(counts) for chunk in range(count)]
        offsets = list(itertools.accumulate(counts, initial=0))
        chunks = ChunkTable(_int32(index, device), _int32(offsets, device))
        longest = max((stop - start for start, stop in itertools.pairwise(bounds)), default=0)
        return cls(bounds, bounds[-1], longest, _int32(bounds, device), chunks)

    def to(self, device: torch.device) -> PackedRows:
        """Return the object for a device."""
        return self.from_bounds(self.bounds, device)

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
        packed = cls.from_bounds(bounds, device)
        packed._check_end(num_tokens)
        return packed

    def _check_end(self, num_tokens: int) -> None:
        if self.num_tokens != num_tokens:
            raise InvalidModelInputError(
                f"cu_seqlens ends at {self.num_tokens}, but the row has {num_tokens} tokens",
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

    @property
    def num_documents(self) -> int:
        """The number of documents, from the shape of a tensor: compiled code guards on no bound."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def documents(self) -> tuple[tuple[int, int], ...]:
        """The token range (start, stop) of each document."""
        return tuple(itertools.pairwise(self.bounds))

    def split(self, row: Tensor, dim: int) -> tuple[Tensor, ...]:
        """Split a tensor into the documents of its row; `dim` is the dimension of the tokens."""
        return split_rows(row, [stop - start for start, stop in self.documents], dim)

    def document_numbers(self) -> Tensor:
        """Return the number of each token's document, [T], without a loop over the documents."""
        token = torch.arange(self.num_tokens, device=self.cu_seqlens.device, dtype=torch.int32)
        return torch.searchsorted(self.cu_seqlens[1:], token, right=True)

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
    def from_mask(cls, valid: Tensor, device: torch.device) -> PaddedRows:
        """Build the object from a bool mask [B, T] in host memory, True for valid tokens.

        The indices are copied to the device; nothing is read back from it.
        """
        lengths = valid.sum(dim=1)
        row_index = lengths.nonzero().flatten()
        bounds = torch.cat([lengths.new_zeros(1), lengths[row_index].cumsum(0)])
        token_index = valid.flatten().nonzero().flatten()
        return cls(
            token_index=copy_to_device(token_index, device),
            row_index=copy_to_device(row_index, device),
            packed=PackedRows.from_bounds(tuple(bounds.tolist()), device),
        )

    def gather(self, x: Tensor) -> Tensor:
        """Return the valid tokens of a padded batch [B, T, ...], packed in one row [1, V, ...]."""
        tokens: Tensor = x.flatten(0, 1)[self.token_index]
        return tokens[None]

    def scatter(self, row: Tensor, batch: int, num_tokens: int) -> Tensor:
        """Return a packed row [1, V, ...] as a padded batch [B, T, ...] with zeros for padding."""
        output = row.new_zeros(batch * num_tokens, *row.shape[2:])
        output = output.index_copy(0, self.token_index, row[0])
        padded: Tensor = output.unflatten(0, (batch, num_tokens))
        return padded


def _int32(values: Sequence[object], device: torch.device) -> Tensor:
    return copy_to_device(torch.tensor(values, dtype=torch.int32), device)


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from host memory to a device without waiting until the device is idle."""
    if device.type == "cuda" and torch.cuda.is_available():
        tensor = tensor.pin_memory()  # otherwise the host would wait for the copy
    return tensor.to(device, non_blocking=True)


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
