"""Which prompts go into one batch: the order of the walk, and the limits."""

import pytest

from amnesia_bench.inference.batches import (
    MOST_ROWS,
    BatchLimits,
    Leaf,
    first_batch,
    leaves_of,
    max_row_tokens,
)
from amnesia_bench.inference.prefix_tree import PrefixNode


def leaves(*sizes, node=0):
    return [Leaf(i, node, tokens, new) for i, (tokens, new) in enumerate(sizes)]


def batch_sizes(waiting, limits):
    sizes = []
    while waiting:
        sizes.append(len(first_batch(waiting, limits)))
        waiting = waiting[sizes[-1] :]
    return sizes


def test_leaves_follow_the_walk_with_equal_lengths_side_by_side():
    nodes = [
        PrefixNode(cut=0, parent=None, source=0, leaves=(0, 2, 4)),
        PrefixNode(cut=64, parent=0, source=1, leaves=(1, 3)),
    ]
    found = leaves_of(nodes, [(70, 5), (90, 5), (60, 5), (80, 5), (70, 9)])
    assert [leaf.index for leaf in found] == [2, 0, 4, 3, 1]
    assert [leaf.node for leaf in found] == [0, 0, 0, 1, 1]
    assert found[2] == Leaf(4, 0, 70, 9)


def test_rows_times_columns_stay_below_the_limit_and_padding_counts():
    waiting = leaves((10, 2), (30, 5), (10, 2), (100, 5), (10, 2))
    assert max_row_tokens(waiting) == 105
    limits = BatchLimits(tokens=105, columns=None, unequal=True)
    assert batch_sizes(waiting, limits) == [3, 1, 1]
    assert batch_sizes(waiting, BatchLimits(104, None, unequal=True)) == [2, 1, 1, 1]


def test_a_row_beyond_the_limit_goes_alone():
    assert batch_sizes(leaves((50, 5), (50, 5)), BatchLimits(1, None, unequal=True)) == [1, 1]


def test_no_row_waits_for_others_beyond_the_context():
    waiting = leaves((100, 2), (10, 50), (60, 50))
    assert batch_sizes(waiting, BatchLimits(10**6, 149, unequal=True)) == [1, 2]
    assert batch_sizes(waiting, BatchLimits(10**6, 150, unequal=True)) == [3]


@pytest.mark.parametrize("unequal", [True, False])
def test_many_short_prompts_are_no_more_than_the_most_rows(unequal):
    waiting = leaves(*[(3, 1)] * (2 * MOST_ROWS + 1))
    limits = BatchLimits(10**6, None, unequal=unequal)
    assert batch_sizes(waiting, limits) == [MOST_ROWS, MOST_ROWS, 1]


def test_rows_that_may_not_be_padded_leave_one_cut_and_are_of_one_length():
    waiting = [*leaves((10, 2), (10, 9), (20, 2), (20, 2)), *leaves((20, 2), node=1)]
    assert batch_sizes(waiting, BatchLimits(10**6, None, unequal=False)) == [2, 2, 1]
