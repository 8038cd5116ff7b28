"""Pack documents into sequences of fixed length, given only the lengths of the documents.

A piece is a run of consecutive tokens of one document, and a sequence is a list of pieces. No
function in this module needs the tokens, so packing a corpus of billions of tokens takes only a few
bytes of memory per document.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.config.data_schema import OverLength

Integers = NDArray[np.int64]

WINDOW_DOCUMENTS = 50_000


@dataclass(frozen=True)
class Pieces:
    """P pieces: the document of each, its first token in the document, and its number of tokens.

    All three arrays are int64 [P].
    """

    document: Integers
    start: Integers
    length: Integers

    def __len__(self) -> int:
        return len(self.length)

    def take(self, index: slice | list[int] | Integers | NDArray[np.bool_]) -> Pieces:
        """Return the pieces with these indices, or where this mask is true."""
        return Pieces(self.document[index], self.start[index], self.length[index])


def whole_documents(lengths: Integers, capacity: int, over_length: OverLength) -> Pieces:
    """Return the documents in order, as pieces of at most `capacity` tokens.

    `over_length` tells whether longer documents are dropped, truncated, or split into pieces.
    """
    documents = np.arange(len(lengths), dtype=np.int64)
    if over_length == "drop":
        documents = documents[lengths <= capacity]
        return Pieces(documents, np.zeros_like(documents), lengths[documents])
    if over_length == "truncate":
        return Pieces(documents, np.zeros_like(documents), np.minimum(lengths, capacity))
    counts = -(-lengths // capacity)
    documents = np.repeat(documents, counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    start = (np.arange(len(documents), dtype=np.int64) - first) * capacity
    return Pieces(documents, start, np.minimum(lengths[documents] - start, capacity))


def pack_best_fit(
    pieces: Pieces, capacity: int, seed: int, window: int = WINDOW_DOCUMENTS
) -> Iterator[Pieces]:
    """Yield sequences of complete pieces.

    The pieces are shuffled and divided into windows, and each window is packed by best-fit
    decreasing. Without windows, each sequence would contain only documents of similar length.
    """
    shuffled = np.random.default_rng(seed).permutation(len(pieces))
    for begin in range(0, len(shuffled), window):
        in_window = shuffled[begin : begin + window]
        for members in best_fit_decreasing(pieces.length[in_window], capacity):
            yield pieces.take(in_window[members])


def pack_single(pieces: Pieces) -> Iterator[Pieces]:
    """Yield one sequence per piece."""
    for i in range(len(pieces)):
        yield pieces.take(slice(i, i + 1))


def best_fit_decreasing(lengths: Integers, capacity: int) -> list[list[int]]:
    """Assign items to bins of size `capacity`, and return the indices of the items in each bin.

    The longest items are assigned first, each to the fullest bin into which it fits. All lengths
    must be between 1 and `capacity`.
    """
    bins: list[list[int]] = []
    # with_space[s] lists the bins with free space s; bit s of `spaces` is set if there are any.
    with_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0
    for i in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[i])
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            target = with_space[space].pop()
            if not with_space[space]:
                spaces ^= 1 << space
            bins[target].append(i)
        else:
            space, target = capacity, len(bins)
            bins.append([i])
        free = space - length
        if free:
            with_space[free].append(target)
            spaces |= 1 << free
    return bins


def concatenate(lengths: Integers, capacity: int) -> Iterator[Pieces]:
    """Yield sequences of `capacity` tokens cut from the concatenated documents.

    Only the last sequence may be shorter.
    """
    if not len(lengths):
        return
    ends = np.cumsum(lengths)
    # Cut at the end of each document and of each sequence.
    full = np.arange(capacity, ends[-1], capacity, dtype=np.int64)
    cuts = np.union1d(ends, full)
    begins = np.concatenate((np.zeros(1, np.int64), cuts[:-1]))
    document = np.searchsorted(ends, begins, side="right").astype(np.int64)
    pieces = Pieces(document, begins - (ends - lengths)[document], cuts - begins)
    firsts = [0, *np.searchsorted(begins, full).tolist(), len(begins)]
    for first, last in pairwise(firsts):
        yield pieces.take(slice(first, last))
