"""Packing: no token lost or doubled, no sequence too long, whole documents stay whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amnesia_bench.data.packing import (
    Pieces,
    best_fit_decreasing,
    concatenate,
    pack_best_fit,
    pack_single,
    whole_documents,
)

lengths_lists = st.lists(st.integers(1, 200), max_size=120)


def as_lengths(lengths: list[int]) -> np.ndarray:
    return np.array(lengths, np.int64)


def tokens_of(sequences: list[Pieces]) -> list[tuple[int, int]]:
    """Every token as (document, position), in order."""
    return [
        (int(d), int(s) + t)
        for sequence in sequences
        for d, s, n in zip(sequence.document, sequence.start, sequence.length, strict=True)
        for t in range(int(n))
    ]


@given(lengths=lengths_lists, capacity=st.integers(8, 300))
@settings(max_examples=150, deadline=None)
def test_concatenation_keeps_every_token_in_order_and_fills_all_but_the_last(
    lengths: list[int], capacity: int
) -> None:
    sequences = list(concatenate(as_lengths(lengths), capacity))
    assert tokens_of(sequences) == [(d, t) for d, n in enumerate(lengths) for t in range(n)]
    sizes = [int(sequence.length.sum()) for sequence in sequences]
    assert all(size == capacity for size in sizes[:-1])
    assert all(0 < size <= capacity for size in sizes[-1:])
    assert all((sequence.length > 0).all() for sequence in sequences)


@given(lengths=lengths_lists, capacity=st.integers(8, 300), window=st.integers(1, 50),
       policy=st.sampled_from(["drop", "truncate", "split"]))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_best_fit_keeps_every_token_that_the_policy_keeps_once(
    lengths: list[int], capacity: int, window: int, policy: str
) -> None:
    pieces = whole_documents(as_lengths(lengths), capacity, policy)
    sequences = list(pack_best_fit(pieces, capacity, 0, window))
    kept = {
        "drop": [(d, t) for d, n in enumerate(lengths) if n <= capacity for t in range(n)],
        "truncate": [(d, t) for d, n in enumerate(lengths) for t in range(min(n, capacity))],
        "split": [(d, t) for d, n in enumerate(lengths) for t in range(n)],
    }[policy]
    assert sorted(tokens_of(sequences)) == kept
    assert all(0 < sequence.length.sum() <= capacity for sequence in sequences)
    # What fits whole is one piece.
    starts = [int(s) for q in sequences for s in q.start]
    assert policy == "split" or set(starts) <= {0}


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=80))
@settings(max_examples=100, deadline=None)
def test_best_fit_chooses_the_fullest_bin_that_still_fits(lengths: list[int]) -> None:
    bins = best_fit_decreasing(as_lengths(lengths), 64)
    # The rule itself, written out: quadratic, and obviously right.
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in free if space >= length]
        if fitting:
            free[free.index(min(fitting))] -= length
        else:
            free.append(64 - length)
    assert sorted(64 - sum(lengths[i] for i in chosen) for chosen in bins) == sorted(free)


def test_split_cuts_at_the_capacity() -> None:
    pieces = whole_documents(as_lengths([5, 20, 8]), 8, "split")
    assert pieces.document.tolist() == [0, 1, 1, 1, 2]
    assert pieces.start.tolist() == [0, 0, 8, 16, 0]
    assert pieces.length.tolist() == [5, 8, 8, 4, 8]


def test_single_is_one_document_a_sequence() -> None:
    pieces = whole_documents(as_lengths([5, 20, 8]), 8, "drop")
    assert [s.document.tolist() for s in pack_single(pieces)] == [[0], [2]]


@pytest.mark.parametrize("seed", [0, 1])
def test_packing_is_the_same_for_the_same_seed(seed: int) -> None:
    lengths = np.random.default_rng(9).integers(1, 60, 500)
    pieces = whole_documents(lengths, 64, "drop")
    runs = [tokens_of(list(pack_best_fit(pieces, 64, seed, 100))) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0] != tokens_of(list(pack_best_fit(pieces, 64, seed + 7, 100)))
