"""Compute the bytes that replace the planned rows, before any shard is written.

The new rows are appended to a spool file. Writing a shard then only splices bytes, and errors (NaN,
nothing to change) are raised before the first shard is written. The `copy` rule copies raw bytes;
every other rule computes in float64 and rounds once, to post's dtype. Tensors are processed in
pieces, so memory does not grow with their size unless a rule needs complete matrices.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from amnesia_bench.config.schema import Copy
from amnesia_bench.errors import UserError
from amnesia_bench.records.restoration import EditedTensor
from amnesia_bench.surgery.elementwise import ElementwiseRule, computation
from amnesia_bench.surgery.layer_values import MatrixRule, Pair, apply_rule
from amnesia_bench.surgery.plan import LayerPlan, PlannedTensor
from amnesia_bench.surgery.tensor_pieces import Piece, pieces
from amnesia_bench.weights.numbers import FLOAT_DTYPES, decode, encode

# Norms are sums over chunks of this size, so that no entire tensor is converted to float64.
CHUNK_BYTES = 1 << 16
_PREFETCHED_PLANS = 8

ApplicableRule = Copy | ElementwiseRule | MatrixRule
# Returns the bytes, in post's dtype, that replace the values of a piece.
Donor = Callable[[Piece], bytes]


@dataclass(frozen=True, kw_only=True)
class Patch:
    """Replace `length` bytes at `start` of a shard with the bytes at `spool_start` of the spool."""

    start: int
    length: int
    spool_start: int


@dataclass(frozen=True, kw_only=True)
class Edits:
    """The result of `compute_edits`: `spool` contains the new bytes, `tensors` describes the edits.

    `patches` maps the name of each edited shard to its patches in ascending order.
    """

    spool: Path
    patches: dict[str, tuple[Patch, ...]]
    tensors: tuple[EditedTensor, ...]

    @property
    def changes_nothing(self) -> bool:
        return not any(tensor.changed_values for tensor in self.tensors)


@dataclass(kw_only=True)
class _Statistics:
    """Running totals over the planned rows of one tensor.

    `squares` are the sums of squares of pre, post, post - pre and new - post.
    """

    changed: int = 0
    squares: np.ndarray = field(default_factory=lambda: np.zeros(4))


def compute_edits(
    pair: Pair, plans: tuple[LayerPlan, ...], rule: ApplicableRule, spool: Path
) -> Edits:
    """Apply `rule` to every planned tensor and write the new rows to `spool`.

    Raises:
        UserError: the rows to write contain NaN or infinity, or the rule cannot be applied (see
            `apply_rule`).
    """
    patches: dict[str, list[Patch]] = {}
    edited_tensors: list[EditedTensor] = []
    # Hashing takes as long as everything else, so other cores do it.
    with spool.open("wb") as file, ThreadPoolExecutor() as hashers:
        for index, plan in enumerate(plans):
            first = index + _PREFETCHED_PLANS - 1 if index else 0
            _prefetch(pair, plans[first : index + _PREFETCHED_PLANS])
            computed = _computed(rule, pair, plan)
            for name, tensors in plan.by_name().items():
                shard, _ = pair.post.tensors[name]
                donors = [_donor(rule, pair, tensor, computed) for tensor in tensors]
                tensor_patches = patches.setdefault(shard, [])
                edited_tensors += _edit(pair, tensors, donors, (file, tensor_patches), hashers)
    return Edits(
        spool=spool,
        patches={s: tuple(sorted(p, key=lambda patch: patch.start)) for s, p in patches.items()},
        tensors=tuple(edited_tensors),
    )


def _computed(rule: ApplicableRule, pair: Pair, plan: LayerPlan) -> dict[str, bytes]:
    """Return the new contents of each tensor by name, if the rule needs complete matrices."""
    if not isinstance(rule, MatrixRule):
        return {}
    values = apply_rule(rule, pair, plan)
    return {name: encode(new, pair.post.tensors[name][1].dtype) for name, new in values.items()}


def _donor(
    rule: ApplicableRule, pair: Pair, tensor: PlannedTensor, computed: dict[str, bytes]
) -> Donor:
    if isinstance(rule, Copy):
        return lambda piece: piece.pre
    if isinstance(rule, MatrixRule):
        return lambda piece: computed[tensor.name][piece.start_byte :][: len(piece.post)]
    return computation(rule, pair, tensor)


def _edit(
    pair: Pair,
    tensors: Sequence[PlannedTensor],
    donors: Sequence[Donor],
    output: tuple[IO[bytes], list[Patch]],
    hashers: Executor,
) -> list[EditedTensor]:
    """Append the new rows of one tensor to the spool, and return one record per role.

    `output` is the open spool, and the list of patches to extend.
    """
    spool, patches = output
    _, entry = pair.post.tensors[tensors[0].name]
    statistics = [_Statistics() for _ in tensors]
    digests = [hashlib.sha256() for _ in range(3)]
    for piece in pieces(pair, tensors):
        new = piece.post if piece.owner is None else donors[piece.owner](piece)
        updates = [
            hashers.submit(digest.update, data)
            for digest, data in zip(digests, (piece.pre, piece.post, new), strict=True)
        ]
        if piece.owner is not None:
            _add_patch(patches, entry.start + piece.start_byte, len(new), spool.tell())
            spool.write(new)
            name = tensors[piece.owner].name
            _add_piece(statistics[piece.owner], piece, new, partial(_diverged, pair, name))
        for update in updates:
            update.result()
    hashes = [digest.hexdigest() for digest in digests]
    return [
        _edited_tensor(pair, tensor, totals, hashes)
        for tensor, totals in zip(tensors, statistics, strict=True)
    ]


def _add_patch(patches: list[Patch], start: int, length: int, spool_start: int) -> None:
    """Append a patch, or extend the last one if the two are adjacent in shard and spool."""
    if patches:
        last = patches[-1]
        ends = last.start + last.length, last.spool_start + last.length
        if ends == (start, spool_start):
            patches.pop()
            start, length, spool_start = last.start, last.length + length, last.spool_start
    patches.append(Patch(start=start, length=length, spool_start=spool_start))


def measure_drift(pair: Pair, plans: tuple[LayerPlan, ...]) -> dict[int | None, float]:
    """Map each planned layer to the relative drift |post - pre| / |pre| of its planned rows.

    A ratio that is not finite counts as infinite drift, so a diverged layer ranks first.
    """
    drift = {}
    for plan in plans:
        moved = scale = 0.0
        for tensor in plan.tensors:
            for piece in pieces(pair, [tensor]):
                if piece.owner is None:
                    continue
                for pre, post in _chunks(piece, piece.pre, piece.post):
                    with np.errstate(invalid="ignore", over="ignore"):
                        moved += np.vdot(post - pre, post - pre)
                    scale += np.vdot(pre, pre)
        with np.errstate(invalid="ignore"):  # both sums may have overflowed
            ratio = float(np.sqrt(moved / scale)) if scale else np.inf
        drift[plan.layer] = ratio if np.isfinite(ratio) else np.inf
    return drift


def _prefetch(pair: Pair, plans: Iterable[LayerPlan]) -> None:
    """Ask the kernel to prefetch the planned tensors, in the order in which they are used."""
    if not hasattr(os, "posix_fadvise"):  # it is missing on macOS
        return
    names = [name for plan in plans for name in plan.by_name()]
    for checkpoint in (pair.pre, pair.post):
        for name in names:
            shard, entry = checkpoint.tensors[name]
            with checkpoint.held.reading(checkpoint.shards[shard].path) as file:
                os.posix_fadvise(
                    file.fileno(), entry.start, entry.num_bytes, os.POSIX_FADV_WILLNEED
                )


def _chunks(piece: Piece, *buffers: bytes) -> Iterator[list[np.ndarray]]:
    """Yield matching chunks of all buffers, as flat float64 arrays."""
    for begin in range(0, len(piece.post), CHUNK_BYTES):
        chunk = slice(begin, begin + CHUNK_BYTES)
        yield [decode(memoryview(buffer)[chunk], piece.dtype) for buffer in buffers]


def _add_piece(
    statistics: _Statistics, piece: Piece, new: bytes, diverged: Callable[[], UserError]
) -> None:
    bits = np.dtype(f"u{FLOAT_DTYPES[piece.dtype].itemsize}")
    statistics.changed += int(
        np.count_nonzero(np.frombuffer(piece.post, bits) != np.frombuffer(new, bits))
    )
    for pre_values, post_values, new_values in _chunks(piece, piece.pre, piece.post, new):
        if not np.isfinite(new_values).all():
            raise diverged()
        # A diverged post may contain infinity.
        with np.errstate(invalid="ignore", over="ignore"):
            moved, undone = post_values - pre_values, new_values - post_values
            arrays = pre_values, post_values, moved, undone
            statistics.squares += [np.vdot(a, a) for a in arrays]


def _diverged(pair: Pair, name: str) -> UserError:
    return UserError(
        f"{pair.pre.folder}: restoring {name!r} would write NaN or infinity; nothing was written.",
        hint="See which tensors diverged: "
        + shlex.join(["amnesia", "diff", str(pair.pre.folder), str(pair.post.folder)]),
    )


def _edited_tensor(
    pair: Pair, tensor: PlannedTensor, statistics: _Statistics, hashes: Sequence[str]
) -> EditedTensor:
    shard, entry = pair.post.tensors[tensor.name]
    norms = np.sqrt(statistics.squares)
    planned_bytes = tensor.num_rows * entry.row_bytes
    return EditedTensor(
        layer=tensor.layer,
        role=tensor.role,
        name=tensor.name,
        shard=shard,
        dtype=entry.dtype,
        rows=tensor.rows,
        planned_bytes=planned_bytes,
        values=planned_bytes // FLOAT_DTYPES[entry.dtype].itemsize,
        changed_values=statistics.changed,
        sha256_pre=hashes[0],
        sha256_post=hashes[1],
        sha256_restored=hashes[2],
        norm_pre=_finite(norms[0]),
        norm_post=_finite(norms[1]),
        norm_post_minus_pre=_finite(norms[2]),
        norm_restored_minus_post=_finite(norms[3]),
    )


def _finite(norm: float) -> float | None:
    return float(norm) if np.isfinite(norm) else None
