"""In which order prompts are read, and which of them in one batch: a tree of shared beginnings.

Prefixes are compared as tokens, never as text, and piece by piece: a prompt is known by the
digests of its beginnings at every multiple of the chunk, as vLLM's prefix cache knows its blocks.
So one pass over prompts that are built on demand is enough, and none of them is kept.

A cut is a multiple of the chunk. A run that resumes at one then makes the same calls on the same
numbers as a run from the start.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Digests = tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class PromptDigest:
    """What is kept of a prompt: its length, and a digest of each beginning of n chunks, n >= 1.

    The last token belongs to no beginning: it is computed for every prompt, its logits are needed.
    """

    num_tokens: int
    beginnings: Digests

    @classmethod
    def of(cls, tokens: NDArray[np.int32], chunk: int) -> PromptDigest:
        """Digest tokens int32 [T]."""
        data = np.ascontiguousarray(tokens, dtype="<i4")
        whole, found = hashlib.blake2b(digest_size=16), []
        for stop in range(chunk, len(data), chunk):
            whole.update(data[stop - chunk : stop].tobytes())
            found.append(whole.digest())
        return cls(num_tokens=len(data), beginnings=tuple(found))


@dataclass(frozen=True, kw_only=True)
class PrefixNode:
    """A beginning of `cut` tokens that prompts share.

    `parent` is the index of the node whose prefix it continues, None for the empty one. `source`
    is a prompt to take its tokens from. `leaves` are the prompts that leave the common text here.
    """

    cut: int
    parent: int | None
    source: int
    leaves: tuple[int, ...]


def plan_prefixes(
    prompts: Sequence[PromptDigest], chunk: int, *, share: bool
) -> tuple[PrefixNode, ...]:
    """Return the nodes, each after its parent and before whatever leaves that parent's path.

    In this order (pre-order, shorter cuts first) one cache walks the tree: whoever resumes at a
    cut overwrites what another wrote behind it, and never needs that again.

    Args:
        prompts: one per request.
        chunk: tokens between possible cuts.
        share: False leaves the empty node with all prompts in it.
    """
    everyone = tuple(range(len(prompts)))
    if not share or not prompts:
        return (PrefixNode(cut=0, parent=None, source=0, leaves=everyone),) if prompts else ()
    nodes: list[PrefixNode] = []
    # A stack instead of recursion: nested prefixes may be deeper than Python's limit.
    waiting: list[tuple[int, int | None, tuple[int, ...]]] = [(0, None, everyone)]
    while waiting:
        depth, parent, members = waiting.pop()
        depth = max(depth, _common_depth([prompts[i].beginnings for i in members]))
        children: dict[bytes, list[int]] = {}
        leaves = []
        for i in members:
            beginnings = prompts[i].beginnings
            if len(beginnings) > depth:
                children.setdefault(beginnings[depth], []).append(i)
            else:
                leaves.append(i)
        shared = [tuple(group) for group in children.values() if len(group) > 1]
        leaves += [group[0] for group in children.values() if len(group) == 1]
        nodes.append(
            PrefixNode(
                cut=depth * chunk,
                parent=parent,
                source=members[0],
                leaves=tuple(sorted(leaves)),
            )
        )
        here = len(nodes) - 1
        waiting += [(depth + 1, here, group) for group in reversed(shared)]
    return tuple(nodes)


def _common_depth(members: Sequence[Digests]) -> int:
    if len(members) == 1:
        return 0
    first = members[0]
    shortest = min(len(each) for each in members)
    # Digests are of whole beginnings, so equality at n implies equality at all before n.
    low, high = 0, shortest
    while low < high:
        middle = (low + high + 1) // 2
        if all(each[middle - 1] == first[middle - 1] for each in members):
            low = middle
        else:
            high = middle - 1
    return low


def prefill_tokens(prompts: Sequence[PromptDigest], nodes: Sequence[PrefixNode]) -> int:
    """Return how many prompt tokens a walk over the nodes computes."""
    total = 0
    for node in nodes:
        start = 0 if node.parent is None else nodes[node.parent].cut
        total += node.cut - start + sum(prompts[i].num_tokens - node.cut for i in node.leaves)
    return total


def partition(
    prompts: Sequence[PromptDigest], chunk: int, parts: int
) -> tuple[tuple[int, ...], ...]:
    """Split requests among processes, neighbours in the tree together, with about equal work.

    Each process walks a tree of its own, so what its first request shares with others' is
    computed again there. Returns exactly `parts` tuples of indices; some may be empty.
    """
    nodes = plan_prefixes(prompts, chunk, share=True)
    order = [i for node in nodes for i in node.leaves]
    if not order:
        return ((),) * parts
    whole = [prompts[i].num_tokens for i in order]
    # What a request costs after its neighbour has been computed.
    added = [whole[0]] + [
        prompts[right].num_tokens
        - chunk * _common_depth([prompts[left].beginnings, prompts[right].beginnings])
        for left, right in itertools.pairwise(order)
    ]
    low, high = max(whole), whole[0] + sum(added[1:])
    while low < high:
        middle = (low + high) // 2
        if len(_packed(whole, added, middle)) <= parts:
            high = middle
        else:
            low = middle + 1
    groups = [tuple(order[start:stop]) for start, stop in _packed(whole, added, low)]
    return (*groups, *[()] * (parts - len(groups)))


def _packed(whole: Sequence[int], added: Iterable[int], limit: int) -> list[tuple[int, int]]:
    """Cut the order into runs that cost at most `limit` each, greedily."""
    bounds, start, cost = [], 0, 0
    for i, extra in enumerate(added):
        if i > start and cost + extra > limit:
            bounds.append((start, i))
            start, cost = i, 0
        cost += whole[i] if i == start else extra
    return [*bounds, (start, len(whole))]


# A step of 64 rows of a small model takes little more than one of a single row, and answers come
# out, and are kept, every so often. It also bounds the states of linear layers, which take the
# same memory however short a prompt is.
MOST_ROWS = 64


@dataclass(frozen=True)
class Leaf:
    """A prompt as a place in the tree: what is kept of a request until it is asked for again.

    `index` is that of the request, `node` that of the cut where it leaves the common text.
    """

    index: int
    node: int
    num_tokens: int
    max_new_tokens: int

    @property
    def reading(self) -> tuple[int, int]:
        """Prompts for which this is equal can be read together."""
        return self.node, self.num_tokens


def leaves_of(nodes: Sequence[PrefixNode], sizes: Sequence[tuple[int, int]]) -> list[Leaf]:
    """Return all prompts in the order of the walk, those that can be read together as neighbours.

    Args:
        nodes: the tree.
        sizes: tokens of each prompt, and of its longest answer.
    """
    found = [Leaf(i, n, *sizes[i]) for n, node in enumerate(nodes) for i in node.leaves]
    return sorted(found, key=lambda leaf: leaf.reading)


@dataclass(frozen=True)
class BatchLimits:
    """What a batch may be.

    `tokens` bounds rows times columns (one row alone may be longer), `columns` the tokens of the
    longest prompt and of the longest answer, None for no limit. `unequal` is whether rows may be
    padded; else all are read together.
    """

    tokens: int
    columns: int | None
    unequal: bool


def first_batch(leaves: Sequence[Leaf], limits: BatchLimits) -> list[Leaf]:
    """Return the leaves at the front that go into one batch: at least one."""
    batch = list(leaves[:1])
    for leaf in leaves[1:MOST_ROWS]:
        columns = max_row_tokens([*batch, leaf])
        too_wide = limits.columns is not None and columns > limits.columns
        if too_wide or (len(batch) + 1) * columns > limits.tokens:
            break
        if not limits.unequal and leaf.reading != batch[0].reading:
            break
        batch.append(leaf)
    return batch


def max_row_tokens(batch: Sequence[Leaf]) -> int:
    """Return the most tokens that a row may get to, padding included."""
    return max(leaf.num_tokens for leaf in batch) + max(leaf.max_new_tokens for leaf in batch)
