"""The plan of shared prefixes: which cuts, in which order, and who computes what."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amnesia_bench.inference.prefix_tree import (
    PromptDigest,
    partition,
    plan_prefixes,
    prefill_tokens,
)
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
