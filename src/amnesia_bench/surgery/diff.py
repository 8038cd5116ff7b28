"""Which tensors of two checkpoints differ, and by how much. Streams; never holds a whole tensor."""

from __future__ import annotations

import math
import os
import re
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
from amnesia_bench.weights.numbers import FLOAT_DTYPES, Float64, decode

PIECE_VALUES = 1 << 15
LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\.")
NO_ROLE = len(ROLE_ORDER)


def diff(request: DiffRequest) -> CheckpointDifference:
    """Compare every tensor of two checkpoints, by bytes first and then by values.

    Tensors are paired by their place in the decoder, whatever it is wrapped in. Unlike a restore
    this takes any two checkpoints: other shapes and dtypes are differences, and an architecture
    without an attention map is compared by names and without roles.

    Raises:
        UserError: one of the folders is not a whole checkpoint.
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
                lambda names: _compare(_Two(a=a, b=b, name_a=names[0], name_b=names[1]), roles),
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
        different=tuple(sorted((d for found in compared for d in found), key=_order)),
    )


def _order(difference: TensorDifference) -> tuple[bool, int, int, str]:
    layer, role = difference.layer, difference.role
    place = NO_ROLE if role is None else ROLE_ORDER[Role(role)]
    return layer is None, layer or 0, place, difference.name


def _attention_or_none(checkpoint: Checkpoint) -> AttentionMap | None:
    try:
        return attention_map(checkpoint.config, checkpoint.shapes, ROUTING)
    except UserError:
        return None


@dataclass(frozen=True, kw_only=True)
class _Two:
    """A tensor of A and its partner of B."""

    a: Checkpoint
    b: Checkpoint
    name_a: str
    name_b: str

    @property
    def entries(self) -> tuple[TensorEntry, TensorEntry]:
        return self.a.tensors[self.name_a][1], self.b.tensors[self.name_b][1]

    def pieces(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the same PIECE_VALUES values of both, as raw bytes."""
        yield from zip(
            self.a.pieces(self.name_a, PIECE_VALUES),
            self.b.pieces(self.name_b, PIECE_VALUES),
            strict=True,
        )


@dataclass(kw_only=True)
class _Sums:
    """What is added up over the values of one role."""

    values: int = 0
    changed: int = 0
    squares: list[float] = field(default_factory=lambda: [0.0, 0.0])  # of A, of B - A

    def add(self, a: Float64, b: Float64) -> None:
        self.values += a.size
        self.changed += int(np.count_nonzero(a != b))
        with np.errstate(invalid="ignore", over="ignore"):
            for i, values in enumerate((a, b - a)):
                self.squares[i] += float(np.vdot(values, values))

    def norms(self) -> tuple[float | None, float | None]:
        """Return |A| and |B - A|, None where they are not finite."""
        a, moved = (float(np.sqrt(s)) if np.isfinite(s) else None for s in self.squares)
        return a, moved


def _compare(two: _Two, roles: Mapping[str, Sequence[RoleTensor]]) -> list[TensorDifference]:
    """Return nothing for equal bytes, else one difference, or one per role of a fused tensor."""
    a, b = two.entries
    same_shape = a.shape == b.shape
    if same_shape and a.dtype == b.dtype and all(x == y for x, y in two.pieces()):
        return []
    tensors = roles.get(two.name_a, [])
    names: list[str | None] = [tensor.role.value for tensor in tensors]
    names = names or [None]
    comparable = same_shape and {a.dtype, b.dtype} <= FLOAT_DTYPES.keys()
    sums = _sums(two, tensors) if comparable else [None] * len(names)
    number = LAYER_NUMBER.search(two.name_a)
    return [
        TensorDifference(
            name=two.name_a,
            name_b=two.name_b,
            layer=int(number.group(1)) if number else None,
            role=role,
            shape_a=a.shape,
            shape_b=b.shape,
            dtype_a=a.dtype,
            dtype_b=b.dtype,
            values=found.values if found else None,
            changed_values=found.changed if found else None,
            norm_a=found.norms()[0] if found else None,
            norm_b_minus_a=found.norms()[1] if found else None,
        )
        for role, found in zip(names, sums, strict=True)
    ]


def _sums(two: _Two, tensors: Sequence[RoleTensor]) -> list[_Sums]:
    """Return the sums of each role's rows; of all values where there is one role or none."""
    entry, partner = two.entries
    sums = [_Sums() for _ in range(max(len(tensors), 1))]
    spans = _spans(tensors, entry)
    start, at = 0, 0
    for piece_a, piece_b in two.pieces():
        a, b = decode(piece_a, entry.dtype), decode(piece_b, partner.dtype)
        while at < len(spans) and spans[at][0] < start + a.size:
            first, stop, which = spans[at]
            inside = slice(max(first - start, 0), min(stop - start, a.size))
            sums[which].add(a[inside], b[inside])
            if stop > start + a.size:
                break
            at += 1
        start += a.size
    return sums


def _spans(tensors: Sequence[RoleTensor], entry: TensorEntry) -> list[tuple[int, int, int]]:
    """Return the ranges of values (start, stop, index of the role), ascending."""
    whole = math.prod(entry.shape)
    if len(tensors) < 2:
        return [(0, whole, 0)]
    row = whole // entry.num_rows
    return sorted(
        (rows.start * row, rows.stop * row, which)
        for which, tensor in enumerate(tensors)
        if tensor.rows is not None
        for rows in map(tensor.rows.rows, range(tensor.rows.num_heads))
    )
