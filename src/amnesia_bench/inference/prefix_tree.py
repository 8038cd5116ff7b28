"""The prefix tree of all prompts: it determines their order, their batches, and cache reuse.

Prefixes are compared as token ids, never as text, and chunk by chunk: a prompt is represented by
the digests of its prefixes at all multiples of the chunk size, as in vLLM's prefix cache. One pass
over prompts that are built on demand is therefore enough, and no prompt is kept.

A cut is the end of a shared prefix, at a multiple of the chunk size. A run that resumes at a cut
makes the same calls, with the same inputs, as a run from the start.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.inference.batch_rows import rows_per_call, rows_that_fit

Digests = tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class PromptDigest:
    """The length of a prompt, its digest, and those of its prefixes of n chunks, n >= 1.

    No prefix contains the last token, whose logits are needed.
    """

    num_tokens: int
    prefixes: Digests
    whole: bytes

    @classmethod
    def of(cls, tokens: NDArray[np.int32], chunk: int) -> PromptDigest:
        """Return the digest of a prompt with the given token ids, int32 [T]."""
        data = np.ascontiguousarray(tokens, dtype="<i4")
        digest, prefixes = hashlib.blake2b(digest_size=16), []
        for stop in range(chunk, len(data), chunk):
            digest.update(data[stop - chunk : stop].tobytes())
            prefixes.append(digest.digest())
        digest.update(data[len(prefixes) * chunk :].tobytes())
        return cls(num_tokens=len(data), prefixes=tuple(prefixes), whole=digest.digest())


@dataclass(frozen=True, kw_only=True)
class PrefixNode:
    """A prefix of `cut` tokens that several prompts share.

    `parent` is the index of the node whose prefix this prefix extends, or None for the root.
    `source` is the index of a prompt that starts with the prefix. `leaves` are the indices of the
    prompts that branch off at this node.
    """

    cut: int
    parent: int | None
    source: int
    leaves: tuple[int, ...]


def plan_prefixes(
    prompts: Sequence[PromptDigest], chunk: int, *, share: bool
) -> tuple[PrefixNode, ...]:
    """Return the nodes of the prefix tree in pre-order, shorter cuts first.

    In this order, a single cache suffices for the tree: a prompt that resumes at a cut overwrites
    the tokens of an earlier prompt after that cut, and these are never needed again.

    Args:
        prompts: the digest of each request's prompt.
        chunk: number of tokens between possible cuts.
        share: if False, the tree is a root with all prompts as its leaves.
    """
    all_prompts = tuple(range(len(prompts)))
    if not share or not prompts:
        return (PrefixNode(cut=0, parent=None, source=0, leaves=all_prompts),) if prompts else ()
    nodes: list[PrefixNode] = []
    # A stack replaces recursion: prefixes may be nested more deeply than Python's recursion limit.
    stack: list[tuple[int, int | None, tuple[int, ...]]] = [(0, None, all_prompts)]
    while stack:
        depth, parent, members = stack.pop()
        depth = max(depth, _common_depth([prompts[i].prefixes for i in members]))
        children: dict[bytes, list[int]] = {}
        leaves = []
        for i in members:
            prefixes = prompts[i].prefixes
            if len(prefixes) > depth:
                children.setdefault(prefixes[depth], []).append(i)
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
        index = len(nodes) - 1
        stack += [(depth + 1, index, group) for group in reversed(shared)]
    return tuple(nodes)


def _common_depth(members: Sequence[Digests]) -> int:
    if len(members) == 1:
        return 0
    first = members[0]
    shortest = min(len(digests) for digests in members)
    # Each digest covers the full prefix, so equality at n chunks implies equality at fewer chunks.
    low, high = 0, shortest
    while low < high:
        middle = (low + high + 1) // 2
        if all(digests[middle - 1] == first[middle - 1] for digests in members):
            low = middle
        else:
            high = middle - 1
    return low


def partition(
    prompts: Sequence[PromptDigest], max_new_tokens: Sequence[int], chunk: int, parts: int
) -> tuple[tuple[int, ...], ...]:
    """Split requests among processes into `parts` tuples of indices with similar work.

    The work is the number of prefilled tokens and of new tokens at most. Neighbours in the prefix
    tree stay together. Each process has its own tree, so a prefix that is shared by requests of two
    processes is computed in both. Some tuples may be empty.
    """
    nodes = plan_prefixes(prompts, chunk, share=True)
    leaves = leaves_of(nodes, prompts, max_new_tokens, share=True)
    if not leaves:
        return ((),) * parts
    order = [leaf.index for leaf in leaves]
    full = [leaf.most_tokens for leaf in leaves]
    # The cost of a request, in tokens, if its left neighbour has been prefilled.
    added = [full[0]] + [
        _added_tokens(prompts[left.index], prompts[right.index], chunk) + right.max_new_tokens
        for left, right in itertools.pairwise(leaves)
    ]
    low, high = max(full), full[0] + sum(added[1:])
    while low < high:
        middle = (low + high) // 2
        if len(_packed(full, added, middle)) <= parts:
            high = middle
        else:
            low = middle + 1
    groups = [tuple(order[start:stop]) for start, stop in _packed(full, added, low)]
    return (*groups, *[()] * (parts - len(groups)))


def _added_tokens(left: PromptDigest, right: PromptDigest, chunk: int) -> int:
    if left.whole == right.whole:
        return 0
    return right.num_tokens - chunk * _common_depth([left.prefixes, right.prefixes])


def _packed(full: Sequence[int], added: Iterable[int], limit: int) -> list[tuple[int, int]]:
    """Split the ordered requests greedily into ranges that cost at most `limit` tokens each."""
    bounds, start, cost = [], 0, 0
    for i, extra in enumerate(added):
        if i > start and cost + extra > limit:
            bounds.append((start, i))
            start, cost = i, 0
        cost += full[i] if i == start else extra
    return [*bounds, (start, len(full))]


@dataclass(frozen=True)
class Leaf:
    """A prompt's place in the tree, which is kept in memory while the prompt is not.

    `index` is the index of the request, `node` the index of the node at which the prompt branches
    off, and `prompt` the index of the first request with the same prompt.
    """

    index: int
    node: int
    prompt: int
    num_tokens: int
    max_new_tokens: int

    @property
    def prefill_group(self) -> tuple[int, int]:
        """The prefill group: all prompts of the same group can be prefilled in one call."""
        return self.node, self.num_tokens

    @property
    def most_tokens(self) -> int:
        """The maximum number of tokens of the prompt and its answer."""
        return self.num_tokens + self.max_new_tokens


def leaves_of(
    nodes: Sequence[PrefixNode],
    prompts: Sequence[PromptDigest],
    max_new_tokens: Sequence[int],
    *,
    share: bool,
) -> list[Leaf]:
    """Return all prompts in the order of their nodes; prefill groups and repeats are contiguous.

    Args:
        nodes: the nodes of the tree.
        prompts: the digest of each request's prompt.
        max_new_tokens: the maximum number of tokens of each answer.
        share: if False, repeats of a prompt count as different prompts.
    """
    first: dict[bytes, int] = {}
    leaves = [
        Leaf(
            index=i,
            node=n,
            prompt=first.setdefault(prompts[i].whole, i) if share else i,
            num_tokens=prompts[i].num_tokens,
            max_new_tokens=max_new_tokens[i],
        )
        for n, node in enumerate(nodes)
        for i in node.leaves
    ]
    return sorted(leaves, key=lambda leaf: (leaf.prefill_group, leaf.prompt))


def prefill_tokens(nodes: Sequence[PrefixNode], leaves: Iterable[Leaf]) -> int:
    """Return how many prompt tokens are prefilled in total when the nodes are visited in order."""
    starts = [0 if node.parent is None else nodes[node.parent].cut for node in nodes]
    shared = sum(node.cut - start for node, start in zip(nodes, starts, strict=True))
    own = {leaf.prompt: leaf.num_tokens - nodes[leaf.node].cut for leaf in leaves}
    return shared + sum(own.values())


@dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """The limits of a batch.

    Attributes:
        max_rows: maximum number of rows.
        free_bytes: memory for caches and logits, as in `rows_that_fit`.
        max_bytes: maximum memory of all rows. It becomes finite when memory runs out, so that it
            does not run out again in every batch.
        row_bytes: returns the memory of a row of a number of tokens.
        unequal: whether prompts of different lengths may share a batch, with padding. Otherwise,
            all rows of a batch are from one prefill group, and none is added later.
        chunk: prefill chunk size in tokens; None means that prompts are prefilled as a whole.
    """

    max_rows: int
    free_bytes: float
    max_bytes: float = math.inf
    row_bytes: Callable[[int], float]
    unequal: bool
    chunk: int | None

    def allow(self, num_rows: int, num_tokens: int) -> bool:
        """Return whether a batch may have `num_rows` rows of up to `num_tokens` tokens."""
        size = self.row_bytes(num_tokens)
        fitting = rows_that_fit(self.free_bytes, size, self.max_rows)
        return num_rows <= fitting and num_rows * size <= self.max_bytes

    def halved(self, num_rows: int, num_tokens: int) -> BatchLimits:
        """Return limits under which half of a batch that did not fit is the largest."""
        return replace(self, max_bytes=num_rows // 2 * self.row_bytes(num_tokens))


def next_rows(waiting: Sequence[Leaf], running: Sequence[Leaf], limits: BatchLimits) -> list[Leaf]:
    """Return the first waiting leaves that fit into a batch, at least one if none is running.

    Args:
        waiting: the leaves that have no row yet, in tree order.
        running: the leaves of the unfinished rows of the batch.
        limits: the limits of the batch.
    """
    if running and not limits.unequal:
        return []
    batch: list[Leaf] = []
    columns = max((leaf.most_tokens for leaf in running), default=0)
    prompts: set[int] = set()
    for leaf in waiting:
        columns = max(columns, leaf.most_tokens)
        prompts.add(leaf.prompt)
        num_rows = len(running) + len(batch) + 1
        if num_rows > 1 and not limits.allow(num_rows, columns):
            break
        if batch and not limits.unequal:
            if leaf.prefill_group != batch[0].prefill_group:
                break
            if len(prompts) > rows_per_call(leaf.num_tokens, limits.chunk):
                break
        batch.append(leaf)
    return batch
