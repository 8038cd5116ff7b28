"""Read a planned tensor of both checkpoints in matching pieces of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from amnesia_bench.surgery.layer_values import Pair
from amnesia_bench.surgery.plan import PlannedTensor
from amnesia_bench.weights.numbers import FLOAT_DTYPES, Float64, decode, encode

PIECE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Successive values of a tensor: the raw bytes in pre and post.

    Attributes:
        owner: index of the planned tensor (role) to which the values belong; None if they are not
            planned.
        start: index of the first value in the flattened tensor.
        raw_pre, raw_dtype: the bytes of pre as they are stored, and their dtype.
        pre, post, dtype: the bytes of pre and post in post's dtype, and this dtype.
    """

    owner: int | None
    start: int
    raw_pre: bytes
    raw_dtype: str
    pre: bytes
    post: bytes
    dtype: str

    @property
    def start_byte(self) -> int:
        """The offset of the piece in post's tensor, in bytes."""
        return self.start * FLOAT_DTYPES[self.dtype].itemsize

    def values(self) -> tuple[Float64, Float64]:
        """Return the values of pre, before any rounding to post's dtype, and of post."""
        return decode(self.raw_pre, self.raw_dtype), decode(self.post, self.dtype)


def pieces(pair: Pair, tensors: Sequence[PlannedTensor]) -> Iterator[Piece]:
    """Yield one tensor completely, in ascending order.

    Args:
        pair: the two checkpoints.
        tensors: the planned rows of this tensor, one item per role; `Piece.owner` is an index of
            this list.
    """
    name = tensors[0].name
    (_, from_entry), (_, entry) = pair.pre.tensors[name], pair.post.tensors[name]
    bounds = list(_bounds(tensors, entry.num_rows, entry.row_bytes))
    raw_size, size = (FLOAT_DTYPES[e.dtype].itemsize for e in (from_entry, entry))
    starts = [first // size for first, _, _ in bounds]
    counts = [(stop - first) // size for first, stop, _ in bounds]
    raw_pieces = pair.pre.parts(name, [count * raw_size for count in counts])
    post_pieces = pair.post.parts(name, [count * size for count in counts])
    for start, (_, _, owner), raw_pre, post in zip(
        starts, bounds, raw_pieces, post_pieces, strict=True
    ):
        same = from_entry.dtype == entry.dtype
        pre = raw_pre if same else encode(decode(raw_pre, from_entry.dtype), entry.dtype)
        yield Piece(
            owner=owner,
            start=start,
            raw_pre=raw_pre,
            raw_dtype=from_entry.dtype,
            pre=pre,
            post=post,
            dtype=entry.dtype,
        )


def _bounds(
    tensors: Sequence[PlannedTensor], num_rows: int, row_bytes: int
) -> Iterator[tuple[int, int, int | None]]:
    """Yield the first byte, the end and the owner of each piece."""
    position = 0
    planned = sorted((*rows, owner) for owner, tensor in enumerate(tensors) for rows in tensor.rows)
    spans: list[tuple[int, int, int | None]] = []
    for start, stop, owner in planned:
        spans += [(position, start, None), (start, stop, owner)]
        position = stop
    spans.append((position, num_rows, None))
    for start, stop, span_owner in spans:
        for first in range(start * row_bytes, stop * row_bytes, PIECE_BYTES):
            yield first, min(first + PIECE_BYTES, stop * row_bytes), span_owner
