"""Measure how the tensors of two checkpoints differ, reading each tensor in small chunks."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from amnesia_bench.errors import UserError
from amnesia_bench.records.difference import CheckpointDifference, TensorDifference
from amnesia_bench.records.roles import AttentionMap, LayerKind, Role, RoleTensor
from amnesia_bench.requests.checkpoints import DiffRequest
from amnesia_bench.surgery.pairing import pair_tensors
from amnesia_bench.weights.attention_map import ROUTING, attention_map
from amnesia_bench.weights.checkpoint import Checkpoint, open_checkpoint
from amnesia_bench.weights.expected import ROLE_ORDER
from amnesia_bench.weights.header import TensorEntry
from amnesia_bench.weights.names import LAYER_NUMBER
from amnesia_bench.weights.numbers import FLOAT_DTYPES, Float64, decode

PIECE_VALUES = 1 << 15
NO_ROLE = len(ROLE_ORDER)


def diff(request: DiffRequest) -> CheckpointDifference:
    """Compare the bytes of each pair of tensors, and the values of the pairs whose bytes differ.

    Tensors are paired by their position in the decoder, even if only one of the decoders is inside
    a multimodal wrapper. Unlike `restore`, this function accepts any two checkpoints: a different
    shape or dtype counts as a difference, and if an architecture has no attention map, tensors are
    paired by name. Without a map of A, differences have no role.

    Raises:
        UserError: one of the folders is not a complete checkpoint.
    """
    a, b = open_checkpoint(request.a), open_checkpoint(request.b)
    maps = _attention_or_none(a), _attention_or_none(b)
    attention = maps[0]
    roles: dict[str, list[RoleTensor]] = {}
    for tensor in attention.tensors if attention else ():
        roles.setdefault(tensor.name, []).append(tensor)
    pairing = pair_tensors(a, b, maps)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        compared = list(
            pool.map(
                lambda names: _compare(
                    _TensorPair(a=a, b=b, name_a=names[0], name_b=names[1]), roles
                ),
                pairing.common.items(),
            )
        )
    return CheckpointDifference(
        a=str(request.a),
        b=str(request.b),
        family=attention.family if attention else None,
        softmax_layers=(attention.layers(LayerKind.FULL, LayerKind.SLIDING) if attention else ()),
        only_in_a=pairing.only_in_a,
        only_in_b=pairing.only_in_b,
        identical=sum(not differences for differences in compared),
        renamed=sum(name_a != name_b for name_a, name_b in pairing.common.items()),
        different=tuple(sorted((d for differences in compared for d in differences), key=_order)),
    )


def _order(difference: TensorDifference) -> tuple[bool, int, int, str]:
    layer, role = difference.layer, difference.role
    role_order = NO_ROLE if role is None else ROLE_ORDER[Role(role)]
    return layer is None, layer or 0, role_order, difference.name


def _attention_or_none(checkpoint: Checkpoint) -> AttentionMap | None:
    try:
        return attention_map(checkpoint.config, checkpoint.shapes, ROUTING)
    except UserError:
        return None


@dataclass(frozen=True, kw_only=True)
class _TensorPair:
    """A tensor of checkpoint A and the corresponding tensor of checkpoint B."""

    a: Checkpoint
    b: Checkpoint
    name_a: str
    name_b: str

    @property
    def entries(self) -> tuple[TensorEntry, TensorEntry]:
        return self.a.tensors[self.name_a][1], self.b.tensors[self.name_b][1]

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the raw bytes of matching chunks of the two tensors, PIECE_VALUES values each."""
        yield from zip(
            self.a.pieces(self.name_a, PIECE_VALUES),
            self.b.pieces(self.name_b, PIECE_VALUES),
            strict=True,
        )


@dataclass(kw_only=True)
class _Sums:
    """Running totals over the values of a tensor that have one role.

    `squares` are the sums of squares of A and of B - A.
    """

    values: int = 0
    changed: int = 0
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0])  # for A, for B - A

    def add(self, a: Float64, b: Float64) -> None:
        self.values += a.size
        self.changed += int(np.count_nonzero(a != b))
        with np.errstate(invalid="ignore", over="ignore"):
            for i, values in enumerate((a, b - a)):
                self.squares[i] += float(np.vdot(values, values))

    def norms(self) -> tuple[float | None, float | None]:
        """Return the Frobenius norms |A| and |B - A|; a norm that is not finite becomes None."""
        a, moved = (float(np.sqrt(s)) if np.isfinite(s) else None for s in self.squares)
        return a, moved


def _compare(
    pair: _TensorPair, roles: Mapping[str, Sequence[RoleTensor]]
) -> list[TensorDifference]:
    """Return the differences of one pair of tensors.

    The list has one entry per role of the tensor, or one entry without a role. It is empty if
    shape, dtype and bytes are equal.
    """
    a, b = pair.entries
    same_shape = a.shape == b.shape
    if same_shape and a.dtype == b.dtype and all(x == y for x, y in pair.pieces()):
        return []
    tensors = roles.get(pair.name_a, [])
    names: list[str | None] = [tensor.role.value for tensor in tensors]
    names = names or [None]
    comparable = same_shape and {a.dtype, b.dtype} <= FLOAT_DTYPES.keys()
    sums = _sums(pair, tensors) if comparable else [None] * len(names)
    number = LAYER_NUMBER.search(pair.name_a)
    return [
        TensorDifference(
            name=pair.name_a,
            name_b=pair.name_b,
            layer=int(number.group(1)) if number else None,
            role=role,
            shape_a=a.shape,
            shape_b=b.shape,
            dtype_a=a.dtype,
            dtype_b=b.dtype,
            values=role_sums.values if role_sums else None,
            changed_values=role_sums.changed if role_sums else None,
            norm_a=role_sums.norms()[0] if role_sums else None,
            norm_b_minus_a=role_sums.norms()[1] if role_sums else None,
        )
        for role, role_sums in zip(names, sums, strict=True)
    ]


def _sums(pair: _TensorPair, tensors: Sequence[RoleTensor]) -> list[_Sums]:
    """Return one `_Sums` per role; if there is at most one role, return one over all values."""
    entry, entry_b = pair.entries
    sums = [_Sums() for _ in range(max(len(tensors), 1))]
    spans = _spans(tensors, entry)
    start, span = 0, 0
    for piece_a, piece_b in pair.pieces():
        a, b = decode(piece_a, entry.dtype), decode(piece_b, entry_b.dtype)
        while span < len(spans) and spans[span][0] < start + a.size:
            first, stop, role_index = spans[span]
            inside = slice(max(first - start, 0), min(stop - start, a.size))
            sums[role_index].add(a[inside], b[inside])
            if stop > start + a.size:
                break
            span += 1
        start += a.size
    return sums


def _spans(tensors: Sequence[RoleTensor], entry: TensorEntry) -> list[tuple[int, int, int]]:
    """Return ascending (start, stop, role index) ranges over the flattened values of a tensor."""
    num_values = math.prod(entry.shape)
    if len(tensors) < 2:
        return [(0, num_values, 0)]
    row_values = num_values // entry.num_rows
    return sorted(
        (rows.start * row_values, rows.stop * row_values, role_index)
        for role_index, tensor in enumerate(tensors)
        if tensor.rows is not None
        for rows in map(tensor.rows.rows, range(tensor.rows.num_heads))
    )
