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
    leaves_of,
    next_rows,
    partition,
    plan_prefixes,
    prefill_tokens,
)
from tests.support.tiny_models import needle_prompts

CHUNK = 4


def _digests(prompts, chunk=CHUNK):
    return [PromptDigest.of(np.asarray(p, np.int32), chunk) for p in prompts]


def tokens_of(digests, chunk, *, share=True):
    nodes = plan_prefixes(digests, chunk, share=share)
    return prefill_tokens(nodes, leaves_of(nodes, digests, [0] * len(digests), share=share))


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
    assert tokens_of(digests, 50, share=False) == sum(len(p) for p in prompts)
    assert tokens_of(digests, 50) < 0.62 * tokens_of(digests, 50, share=False)


def test_equal_prompts_share_all_but_their_last_piece():
    nodes = plan_prefixes(_digests([[1] * 9] * 3), CHUNK, share=True)
    assert [(node.cut, node.leaves) for node in nodes] == [(8, (0, 1, 2))]


def test_repeats_of_a_prompt_are_prefilled_once_whatever_the_chunk():
    questions = [[1] * 9, [1] * 8, [2] * 3, [1] * 9]
    digests = _digests([prompt for prompt in questions for _ in range(16)])
    assert tokens_of(digests, CHUNK) == 9 + 4 + 3  # [1] * 4 is shared by three of the questions
    assert tokens_of(digests, CHUNK, share=False) == 16 * (9 + 8 + 3 + 9)
    assert digests[0] == digests[48]
    assert digests[0].whole != _digests([[1] * 8 + [2]])[0].whole


def test_processes_get_equal_shares_of_the_answers_although_repeats_are_prefilled_once():
    """Without the answers, the process with the shortest questions would get most of them."""
    digests = _digests([[i] * (1 + 9 * i) for i in range(4) for _ in range(16)])
    new = [100] * len(digests)
    for group in partition(digests, new, CHUNK, 2):
        assert len(group) == 32
        assert len({digests[i].whole for i in group}) == 2
    assert {len(group) for group in partition(digests[:16], new[:16], CHUNK, 4)} == {4}


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
    groups = partition(_digests(prompts), [2] * len(prompts), CHUNK, parts)
    assert len(groups) == parts
    assert sorted(itertools.chain(*groups)) == list(range(len(prompts)))


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_processes_get_about_equal_work_and_keep_their_depths_together(parts):
    prompts = needle_prompts(80, 1000, depths=10)
    digests = _digests(prompts, 50)
    costs = []
    for group in partition(digests, [0] * len(digests), 50, parts):
        costs.append(tokens_of([digests[i] for i in group], 50))
    assert max(costs) < 1.3 * sum(costs) / parts
    alone = tokens_of(digests, 50)
    # What two processes both need is computed twice: at most a prompt per process.
    assert sum(costs) <= alone + parts * max(len(p) for p in prompts)


def leaves(*sizes, node=0):
    return [Leaf(i, node, i, tokens, new) for i, (tokens, new) in enumerate(sizes)]


def limits_of(max_rows=64, free_bytes=10.0**9, *, unequal=True, chunk=None):
    """Limits for rows of one byte per token."""
    return BatchLimits(
        max_rows=max_rows, free_bytes=free_bytes, row_bytes=float, unequal=unequal, chunk=chunk
    )


def batch_sizes(waiting, limits):
    sizes = []
    while waiting:
        sizes.append(len(next_rows(waiting, [], limits)))
        waiting = waiting[sizes[-1] :]
    return sizes


def test_leaves_follow_the_walk_with_equal_lengths_and_repeats_side_by_side():
    nodes = [
        PrefixNode(cut=0, parent=None, source=0, leaves=(0, 2, 4, 5, 6)),
        PrefixNode(cut=64, parent=0, source=1, leaves=(1, 3)),
    ]
    prompts = [[1] * 70, [2] * 90, [3] * 60, [4] * 80, [5] * 70, [1] * 70, [5] * 70]
    digests = _digests(prompts)
    found = leaves_of(nodes, digests, [5, 5, 5, 5, 9, 5, 5], share=True)
    assert [leaf.index for leaf in found] == [2, 0, 5, 4, 6, 3, 1]
    assert [leaf.node for leaf in found] == [0, 0, 0, 0, 0, 1, 1]
    assert [leaf.prompt for leaf in found] == [2, 0, 0, 4, 4, 3, 1]
    assert found[3] == Leaf(index=4, node=0, prompt=4, num_tokens=70, max_new_tokens=9)
    alone = leaves_of(nodes, digests, [5] * 7, share=False)
    assert [leaf.prompt for leaf in alone] == [leaf.index for leaf in alone]


def test_rows_fit_into_memory_by_the_longest_of_them():
    waiting = leaves((10, 2), (30, 5), (10, 2), (100, 5), (10, 2))
    # Three rows of 35 bytes fit, with one more for the prompt that is prefilled.
    free = 4 * 35 / 0.85
    assert batch_sizes(waiting, limits_of(free_bytes=free + 1e-6)) == [3, 1, 1]
    assert batch_sizes(waiting, limits_of(free_bytes=free - 1)) == [2, 1, 1, 1]


def test_a_row_beyond_the_limit_goes_alone():
    assert batch_sizes(leaves((50, 5), (50, 5)), limits_of(free_bytes=0.0)) == [1, 1]


def test_running_rows_count_for_rows_and_for_memory():
    waiting, limits = leaves((10, 2), (10, 2), (60, 40)), limits_of(max_rows=4, free_bytes=600.0)
    running = leaves((20, 5), (20, 5))
    assert len(next_rows(waiting, running, limits)) == 2
    assert len(next_rows(waiting[2:], running, limits)) == 1
    assert next_rows(waiting, leaves((300, 20)), limits) == []
    assert len(next_rows(leaves((300, 20)), [], limits)) == 1


def test_a_batch_that_did_not_fit_is_halved_in_bytes():
    limits = limits_of().halved(8, 50)
    assert batch_sizes(leaves(*[(40, 10)] * 9), limits) == [4, 4, 1]
    assert batch_sizes(leaves(*[(90, 10)] * 5), limits) == [2, 2, 1]


@pytest.mark.parametrize("unequal", [True, False])
def test_many_short_prompts_are_no_more_than_the_most_rows(unequal):
    limits = limits_of(max_rows=64, unequal=unequal)
    assert batch_sizes(leaves(*[(3, 1)] * 129), limits) == [64, 64, 1]


def test_rows_that_may_not_be_padded_leave_one_cut_and_are_of_one_length():
    waiting = [*leaves((10, 2), (10, 9), (20, 2), (20, 2)), *leaves((20, 2), node=1)]
    limits = limits_of(unequal=False)
    assert batch_sizes(waiting, limits) == [2, 2, 1]
    assert next_rows(waiting, waiting[:1], limits) == []


def test_rows_that_cannot_be_joined_are_prefilled_by_one_call_of_limited_size():
    waiting = leaves(*[(5000, 10)] * 40)
    assert batch_sizes(waiting, limits_of(unequal=False, chunk=2048)) == [32, 8]
    assert batch_sizes(waiting, limits_of(unequal=False)) == [13, 13, 13, 1]
    repeats = [Leaf(i, 0, 0, 5000, 10) for i in range(40)]
    assert batch_sizes(repeats, limits_of(unequal=False)) == [40]
