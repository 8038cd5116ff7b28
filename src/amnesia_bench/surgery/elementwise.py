"""Apply the rules that compute each weight from the same weight of pre and post.

These rules work on pieces of tensors, so memory does not grow with the size of a tensor. The result
does not depend on the order of tensors, on their shards, or on the sizes of pieces.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.config.schema import Blend, Dare, RoleBlend, Ties
from amnesia_bench.surgery import rules
from amnesia_bench.surgery.layer_values import Pair, refuse_adapters, tensor_not_finite
from amnesia_bench.surgery.plan import PlannedTensor
from amnesia_bench.surgery.tensor_pieces import Piece, pieces
from amnesia_bench.weights.checkpoint import Checkpoint
from amnesia_bench.weights.names import plain_name
from amnesia_bench.weights.numbers import Float64, encode

_DIGIT_BITS = 16
_COMPARED_VALUES = 1 << 19
HEAD = "lm_head.weight"


@dataclass(frozen=True, kw_only=True)
class LayerBlend:
    """A blend with one alpha per layer; the key None is for weights outside the layers."""

    alphas: Mapping[int | None, float]


ElementwiseRule = Blend | LayerBlend | RoleBlend | Ties | Dare


def computation(
    rule: ElementwiseRule, pair: Pair, tensor: PlannedTensor
) -> Callable[[Piece], bytes]:
    """Return a function that computes the new bytes of a tensor's pieces, in post's dtype.

    It must be called for each piece of the planned rows, in ascending order.

    Raises:
        UserError: pre or post contains NaN or infinity, or the tensor is half of an adapter.
    """
    refuse_adapters([tensor])
    new_values = _new_values(rule, pair, tensor)

    def compute(piece: Piece) -> bytes:
        pre, post = _finite_values(pair, tensor.name, piece)
        return encode(new_values(piece.start, pre, post), piece.dtype)

    return compute


def _new_values(
    rule: ElementwiseRule, pair: Pair, tensor: PlannedTensor
) -> Callable[[int, Float64, Float64], Float64]:
    """Return a function of the index of the first value, and the values of pre and post."""
    if isinstance(rule, Blend | LayerBlend | RoleBlend):
        alpha = _share_of_pre(rule, tensor)
        return lambda _, pre, post: rules.blend(pre, post, alpha)
    if isinstance(rule, Dare):
        drawn = _RandomEntries(rule, _mask_name(pair, tensor.name))
        scale = 1 / (1 - rule.drop)
        return lambda start, pre, post: rules.sparse_change(
            pre, post, drawn.kept(start, len(post)), scale
        )
    largest = _LargestEntries(rule, pair, tensor)
    return lambda _, pre, post: rules.sparse_change(
        pre, post, largest.kept(np.abs(post - pre)), rule.scale
    )


def _share_of_pre(rule: Blend | LayerBlend | RoleBlend, tensor: PlannedTensor) -> float:
    if isinstance(rule, Blend):
        return rule.alpha
    if isinstance(rule, LayerBlend):
        return rule.alphas[tensor.layer]
    place = (tensor.layer, tensor.role)
    return next((s.alpha for s in rule.shares if (s.layer, s.role) == place), rule.rest)


def _finite_values(pair: Pair, name: str, piece: Piece) -> tuple[Float64, Float64]:
    pre, post = piece.values()
    for checkpoint, values in ((pair.pre, pre), (pair.post, post)):
        if not np.isfinite(values).all():
            raise tensor_not_finite(checkpoint, name)
    return pre, post


class _RandomEntries:
    """The entries of a tensor that DARE keeps: a function of the seed, the name and the index.

    Philox is a counter-based generator, so a mask can be drawn from any index on, and its raw
    output is the same for all versions of numpy.
    """

    def __init__(self, rule: Dare, name: str) -> None:
        digest = hashlib.sha256(f"{rule.seed}:{name}".encode()).digest()
        self._key = np.frombuffer(digest[:16], "<u8")
        self._dropped_below = np.uint64(int(rule.drop * 2**64))

    def kept(self, start: int, count: int) -> NDArray[np.bool_]:
        block, offset = divmod(start, 4)  # one step of the counter gives four numbers
        generator = np.random.Philox(counter=block, key=self._key)
        numbers: NDArray[np.uint64] = generator.random_raw(offset + count)[offset:]
        kept: NDArray[np.bool_] = numbers >= self._dropped_below
        return kept


class _LargestEntries:
    """The entries of the largest magnitude in a tensor's task vector, which TIES keeps.

    The smallest kept magnitude is found digit by digit, with one pass over the tensor for each:
    the bits of non-negative floats have the same order as their values.
    """

    def __init__(self, rule: Ties, pair: Pair, tensor: PlannedTensor) -> None:
        _, entry = pair.post.tensors[tensor.name]
        row_values = int(np.prod(entry.shape[1:], dtype=np.int64))
        # `kept` is the number of entries that mergekit keeps.
        kept = max(1, int(rule.density * tensor.num_rows * row_values))
        smallest = 0
        for shift in range(64 - _DIGIT_BITS, -1, -_DIGIT_BITS):
            counts = np.zeros(1 << _DIGIT_BITS, np.int64)
            for piece in pieces(pair, [tensor]):
                if piece.owner is not None:
                    pre, post = _finite_values(pair, tensor.name, piece)
                    bits = np.abs(post - pre).view(np.uint64) >> np.uint64(shift)
                    digits = bits[bits >> np.uint64(_DIGIT_BITS) == np.uint64(smallest)]
                    digits &= np.uint64(len(counts) - 1)
                    counts += np.bincount(digits.astype(np.int64), minlength=len(counts))
            at_least = np.cumsum(counts[::-1])[::-1]
            digit = int(np.flatnonzero(at_least >= kept)[-1])
            kept -= int(at_least[digit] - counts[digit])
            smallest = smallest << _DIGIT_BITS | digit
        self._smallest = np.array([smallest], np.uint64).view(np.float64)[0]
        self._equal = kept  # the number of entries to keep that have the smallest magnitude

    def kept(self, magnitudes: Float64) -> NDArray[np.bool_]:
        equal = magnitudes == self._smallest
        first_equal = equal & (np.cumsum(equal) <= self._equal)
        self._equal -= int(np.count_nonzero(first_equal))
        kept: NDArray[np.bool_] = (magnitudes > self._smallest) | first_equal
        return kept


def _mask_name(pair: Pair, name: str) -> str:
    """Return the name that determines a tensor's random mask: without prefixes of its storage.

    If the head is a copy of another tensor (tied embeddings that are stored twice), it is the name
    of that tensor, so that the two stay equal.
    """
    if name.endswith(HEAD):
        shape = pair.post.tensors[name][1].shape
        for other, (_, entry) in pair.post.tensors.items():
            if other != name and entry.shape == shape and _are_copies(pair, name, other):
                name = other
                break
    return plain_name(name).removeprefix(pair.attention.root)


def _are_copies(pair: Pair, a: str, b: str) -> bool:
    return all(_same_bytes(checkpoint, a, b) for checkpoint in (pair.pre, pair.post))


def _same_bytes(checkpoint: Checkpoint, a: str, b: str) -> bool:
    both = (checkpoint.pieces(name, _COMPARED_VALUES) for name in (a, b))
    return all(x == y for x, y in zip_longest(*both))
