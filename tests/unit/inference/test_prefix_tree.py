"""Which prompts are read together, in which order, and in which batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amnesia_bench.inference.prefix_tree import (
    BatchLimits,
    Leaf,
    PrefixNode,
    PromptDigest,
    first_batch,
    leaves_of,
    max_row_tokens,
    partition,
    plan_prefixes,
    prefill_tokens,
)
from amnesia_bench.inference.protocol import MAX_BATCH_ROWS
from tests.support.tiny_models import needle_prompts

CHUNK = 4


def _digests(prompts, chunk=CHUNK):
    return [PromptDigest.of(np.asarray(p, np.int32), chunk) for p in prompts]


def _shared(left, right):
    """Tokens in common, in whole chunks, the last token of either left out."""
    most = min(len(left), len(right)) - 1
    same = next((i for i in range(most) if left[i] != right[i]), most)
    return same // CHUNK * CHUNK


prompts_of_few_tokens = st.lists(
    st.lists(st.integers(0, 1), min_size=1, max_size=30), min_size=1, max_size=12
)


@settings(max_examples=200, deadline=None)
@given(prompts_of_few_tokens)
def test_each_prompt_leaves_where_it_last_has_something_in_common(prompts):
    nodes = plan_prefixes(_digests(prompts), CHUNK, share=True)
    assert sorted(i for node in nodes for i in node.leaves) == list(range(len(prompts)))
    for node in nodes:
        for i in node.leaves:
            others = [_shared(prompts[i], p) for j, p in enumerate(prompts) if j != i]
            assert node.cut == max(others, default=0)
            assert prompts[i][: node.cut] == prompts[node.source][: node.cut]
            assert node.cut < len(prompts[i])


@settings(max_examples=200, deadline=None)
@given(prompts_of_few_tokens)
def test_a_walk_never_needs_what_it_left(prompts):
    """Every node continues one that is still on the path from the start, which only grows there."""
    nodes = plan_prefixes(_digests(prompts), CHUNK, share=True)
    path = [None]
    for index, node in enumerate(nodes):
        assert node.parent in path
        while path[-1] != node.parent:
            path.pop()
        path.append(index)
        if node.parent is not None:
            parent = nodes[node.parent]
            assert node.cut > parent.cut
            shared = prompts[node.source][: parent.cut]
            assert prompts[parent.source][: parent.cut] == shared


def test_needles_in_one_haystack_make_one_path_of_ascending_cuts():
    prompts = needle_prompts(40, 1000, depths=10)
    digests = _digests(prompts, 50)
    nodes = plan_prefixes(digests, 50, share=True)
    assert [node.cut for node in nodes] == sorted(node.cut for node in nodes)
    assert [node.parent for node in nodes] == [None, *range(len(nodes) - 1)]
    full = plan_prefixes(digests, 50, share=False)
    assert prefill_tokens(digests, full) == sum(len(p) for p in prompts)
    assert prefill_tokens(digests, nodes) < 0.62 * prefill_tokens(digests, full)


def test_equal_prompts_share_all_but_their_last_piece():
    nodes = plan_prefixes(_digests([[1] * 9] * 3), CHUNK, share=True)
    assert [(node.cut, node.leaves) for node in nodes] == [(8, (0, 1, 2))]


def test_without_sharing_there_is_no_cut():
    nodes = plan_prefixes(_digests([[1] * 9] * 3), CHUNK, share=False)
    assert [(node.cut, node.leaves) for node in nodes] == [(0, (0, 1, 2))]
    assert plan_prefixes([], CHUNK, share=True) == ()


def test_prefixes_are_compared_as_tokens_whatever_array_they_come_in():
    tokens = np.arange(20, dtype=np.int32)
    strided = np.repeat(tokens, 2)[::2]
    assert PromptDigest.of(tokens, CHUNK) == PromptDigest.of(strided, CHUNK)


@settings(max_examples=100, deadline=None)
@given(prompts_of_few_tokens, st.integers(1, 5))
def test_processes_get_every_request_once(prompts, parts):
    groups = partition(_digests(prompts), CHUNK, parts)
    assert len(groups) == parts
    assert sorted(itertools.chain(*groups)) == list(range(len(prompts)))


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_processes_get_about_equal_work_and_keep_their_depths_together(parts):
    prompts = needle_prompts(80, 1000, depths=10)
    digests = _digests(prompts, 50)
    costs = []
    for group in partition(digests, 50, parts):
        own = [digests[i] for i in group]
        costs.append(prefill_tokens(own, plan_prefixes(own, 50, share=True)))
    assert max(costs) < 1.3 * sum(costs) / parts
    alone = prefill_tokens(digests, plan_prefixes(digests, 50, share=True))
    # What two processes both need is computed twice: at most a prompt per process.
    assert sum(costs) <= alone + parts * max(len(p) for p in prompts)


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
    waiting = leaves(*[(3, 1)] * (2 * MAX_BATCH_ROWS + 1))
    limits = BatchLimits(10**6, None, unequal=unequal)
    assert batch_sizes(waiting, limits) == [MAX_BATCH_ROWS, MAX_BATCH_ROWS, 1]


def test_rows_that_may_not_be_padded_leave_one_cut_and_are_of_one_length():
    waiting = [*leaves((10, 2), (10, 9), (20, 2), (20, 2)), *leaves((20, 2), node=1)]
    assert batch_sizes(waiting, BatchLimits(10**6, None, unequal=False)) == [2, 2, 1]
