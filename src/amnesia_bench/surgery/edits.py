"""Compute the bytes that replace the planned rows, before any shard is written.

The new rows are appended to a spool file. Writing a shard then only splices bytes, and errors (NaN,
nothing to change) are raised before the first shard is written. The `copy` rule copies raw bytes;
every other rule computes in float64 and rounds once, to post's dtype.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amnesia_bench.config.schema import Copy, Rule
from amnesia_bench.errors import UserError
from amnesia_bench.records.restoration import EditedTensor
from amnesia_bench.surgery.layer_values import Pair, apply_rule
from amnesia_bench.surgery.plan import LayerPlan, PlannedTensor
from amnesia_bench.weights.header import TensorEntry
from amnesia_bench.weights.numbers import FLOAT_DTYPES, decode, encode

# Norms are computed chunk by chunk, so that `copy` never converts an entire tensor to float64.
PIECE_BYTES = 1 << 16


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


@dataclass(frozen=True, kw_only=True)
class _Values:
    """The bytes of one tensor in pre, in post and after the edit, all in post's dtype.

    `new` equals `post` outside the planned rows.
    """

    pre: bytes
    post: bytes
    new: bytearray


def compute_edits(pair: Pair, plans: tuple[LayerPlan, ...], rule: Rule, spool: Path) -> Edits:
    """Apply `rule` to every planned tensor and write the new rows to `spool`.

    Raises:
        UserError: the rows to write contain NaN or infinity, or the rule cannot be applied (see
            `apply_rule`).
    """
    patches: dict[str, list[Patch]] = {}
    edited_tensors = []
    _prefetch(pair, plans)
    with spool.open("wb") as file, ThreadPoolExecutor() as hashers:
        for plan in plans:
            computed = {} if isinstance(rule, Copy) else apply_rule(rule, pair, plan)
            for name, tensors in plan.by_name().items():
                shard, entry = pair.post.tensors[name]
                post = pair.post.read(name)
                values = _Values(pre=_in_post_dtype(pair, name), post=post, new=bytearray(post))
                donor = encode(computed[name], entry.dtype) if name in computed else values.pre
                for start, stop in _byte_ranges(tensors, entry):
                    values.new[start:stop] = donor[start:stop]
                    patches.setdefault(shard, []).append(
                        Patch(
                            start=entry.start + start,
                            length=stop - start,
                            spool_start=file.tell(),
                        )
                    )
                    file.write(values.new[start:stop])
                # Hashing takes as long as everything else, so other cores do it.
                hashes = [hashers.submit(_sha256, v) for v in (values.pre, post, values.new)]
                edited_tensors += [
                    _edited_tensor(pair, tensor, values, hashes) for tensor in tensors
                ]
    return Edits(
        spool=spool,
        patches={s: tuple(sorted(p, key=lambda patch: patch.start)) for s, p in patches.items()},
        tensors=tuple(edited_tensors),
    )


def measure_drift(pair: Pair, plans: tuple[LayerPlan, ...]) -> dict[int, float]:
    """Map each planned layer to the relative drift |post - pre| / |pre| of its planned rows.

    A ratio that is not finite counts as infinite drift, so a diverged layer ranks first.
    """
    drift = {}
    for plan in plans:
        moved = scale = 0.0
        for tensor in plan.tensors:
            buffers = _in_post_dtype(pair, tensor.name), pair.post.read(tensor.name)
            for pre, post in _value_pieces(tensor, pair.post.tensors[tensor.name][1], *buffers):
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


def _in_post_dtype(pair: Pair, name: str) -> bytes:
    data = pair.pre.read(name)
    from_dtype, to_dtype = (c.tensors[name][1].dtype for c in (pair.pre, pair.post))
    return data if from_dtype == to_dtype else encode(decode(data, from_dtype), to_dtype)


def _byte_ranges(tensors: Iterable[PlannedTensor], entry: TensorEntry) -> Iterator[tuple[int, int]]:
    for tensor in tensors:
        for start, stop in tensor.rows:
            yield start * entry.row_bytes, stop * entry.row_bytes


def _value_pieces(
    tensor: PlannedTensor, entry: TensorEntry, *buffers: bytes | bytearray
) -> Iterator[list[np.ndarray]]:
    """Yield matching chunks of the planned rows of all buffers, as flat float64 arrays."""
    for start, stop in _byte_ranges([tensor], entry):
        for begin in range(start, stop, PIECE_BYTES):
            end = min(begin + PIECE_BYTES, stop)
            yield [decode(memoryview(buffer)[begin:end], entry.dtype) for buffer in buffers]


def _edited_tensor(
    pair: Pair, tensor: PlannedTensor, values: _Values, hashes: Sequence[Future[str]]
) -> EditedTensor:
    shard, entry = pair.post.tensors[tensor.name]
    pre, post, new = values.pre, values.post, values.new
    bits = np.dtype(f"u{FLOAT_DTYPES[entry.dtype].itemsize}")
    changed = sum(
        int(np.count_nonzero(np.frombuffer(post[a:b], bits) != np.frombuffer(new[a:b], bits)))
        for a, b in _byte_ranges([tensor], entry)
    )
    squares = np.zeros(4)
    for pre_values, post_values, new_values in _value_pieces(tensor, entry, pre, post, new):
        if not np.isfinite(new_values).all():
            raise UserError(
                f"{pair.pre.folder}: restoring {tensor.name!r} would write NaN or infinity; "
                "nothing was written.",
                hint="See which tensors diverged: "
                + shlex.join(["amnesia", "diff", str(pair.pre.folder), str(pair.post.folder)]),
            )
        # A diverged post may contain infinity.
        with np.errstate(invalid="ignore", over="ignore"):
            moved, undone = post_values - pre_values, new_values - post_values
            squares += [np.vdot(a, a) for a in (pre_values, post_values, moved, undone)]
    norms = np.sqrt(squares)
    return EditedTensor(
        layer=tensor.layer,
        role=tensor.role,
        name=tensor.name,
        shard=shard,
        dtype=entry.dtype,
        rows=tensor.rows,
        planned_bytes=tensor.num_rows * entry.row_bytes,
        values=tensor.num_rows * entry.row_bytes // bits.itemsize,
        changed_values=changed,
        sha256_pre=hashes[0].result(),
        sha256_post=hashes[1].result(),
        sha256_restored=hashes[2].result(),
        norm_pre=_finite(norms[0]),
        norm_post=_finite(norms[1]),
        norm_post_minus_pre=_finite(norms[2]),
        norm_restored_minus_post=_finite(norms[3]),
    )


def _sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def _finite(norm: float) -> float | None:
    return float(norm) if np.isfinite(norm) else None
