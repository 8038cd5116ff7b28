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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache

from amnesia_bench.inference.caches import JoinedRows, fork
from amnesia_bench.inference.decoding import DecodingRow, PrefilledRows
from amnesia_bench.inference.language_model import LanguageModel, catching_oom, token_rows
from amnesia_bench.inference.protocol import MAX_BATCH_ROWS, PromptRequest

Digests = tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class PromptDigest:
    """The length of a prompt, and the digest of each of its prefixes of n chunks, n >= 1.

    No prefix contains the last token, which is computed for every prompt because its logits are
    needed.
    """

    num_tokens: int
    prefixes: Digests

    @classmethod
    def of(cls, tokens: NDArray[np.int32], chunk: int) -> PromptDigest:
        """Return the digest of a prompt with the given token ids, int32 [T]."""
        data = np.ascontiguousarray(tokens, dtype="<i4")
        digest, prefixes = hashlib.blake2b(digest_size=16), []
        for stop in range(chunk, len(data), chunk):
            digest.update(data[stop - chunk : stop].tobytes())
            prefixes.append(digest.digest())
        return cls(num_tokens=len(data), prefixes=tuple(prefixes))


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


def prefill_tokens(prompts: Sequence[PromptDigest], nodes: Sequence[PrefixNode]) -> int:
    """Return how many prompt tokens are prefilled in total when the nodes are visited in order."""
    total = 0
    for node in nodes:
        start = 0 if node.parent is None else nodes[node.parent].cut
        total += node.cut - start + sum(prompts[i].num_tokens - node.cut for i in node.leaves)
    return total


def partition(
    prompts: Sequence[PromptDigest], chunk: int, parts: int
) -> tuple[tuple[int, ...], ...]:
    """Split requests among processes into `parts` tuples of indices with similar work.

    Neighbours in the prefix tree stay together. Each process has its own tree, so a prefix that is
    shared by requests of two processes is computed in both. Some tuples may be empty.
    """
    nodes = plan_prefixes(prompts, chunk, share=True)
    order = [i for node in nodes for i in node.leaves]
    if not order:
        return ((),) * parts
    full = [prompts[i].num_tokens for i in order]
    # The cost of a request, in tokens, if its left neighbour has been prefilled.
    added = [full[0]] + [
        prompts[right].num_tokens
        - chunk * _common_depth([prompts[left].prefixes, prompts[right].prefixes])
        for left, right in itertools.pairwise(order)
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

    `index` is the index of the request, and `node` the index of the node at which the prompt
    branches off.
    """

    index: int
    node: int
    num_tokens: int
    max_new_tokens: int

    @property
    def prefill_group(self) -> tuple[int, int]:
        """The prefill group: all prompts of the same group can be prefilled in one call."""
        return self.node, self.num_tokens


def leaves_of(nodes: Sequence[PrefixNode], sizes: Sequence[tuple[int, int]]) -> list[Leaf]:
    """Return all prompts in the order of their nodes; each prefill group is contiguous.

    Args:
        nodes: the nodes of the tree.
        sizes: for each prompt, its number of tokens and the maximum number of tokens of its answer.
    """
    leaves = [Leaf(i, n, *sizes[i]) for n, node in enumerate(nodes) for i in node.leaves]
    return sorted(leaves, key=lambda leaf: leaf.prefill_group)


@dataclass(frozen=True)
class BatchLimits:
    """The limits of a batch.

    `tokens` is the maximum of rows times columns (a single row may be longer). `columns` is the
    maximum of the longest prompt plus the longest answer, in tokens; None means no limit. `unequal`
    allows prompts of different lengths, with padding; without it, all rows of a batch are from one
    prefill group.
    """

    tokens: int
    columns: int | None
    unequal: bool


def first_batch(leaves: Sequence[Leaf], limits: BatchLimits) -> list[Leaf]:
    """Return the first leaves that fit into one batch, but at least one."""
    batch = list(leaves[:1])
    for leaf in leaves[1:MAX_BATCH_ROWS]:
        columns = max_row_tokens([*batch, leaf])
        too_wide = limits.columns is not None and columns > limits.columns
        if too_wide or (len(batch) + 1) * columns > limits.tokens:
            break
        if not limits.unequal and leaf.prefill_group != batch[0].prefill_group:
            break
        batch.append(leaf)
    return batch


def max_row_tokens(batch: Sequence[Leaf]) -> int:
    """Return the maximum number of tokens of a row, including padding and answer."""
    return max(leaf.num_tokens for leaf in batch) + max(leaf.max_new_tokens for leaf in batch)


@dataclass(frozen=True, eq=False)
class _Cut:
    """A cut on the current path: its node (None before the root), length and cache snapshot."""

    node: int | None
    num_tokens: int
    snapshot: Any


class PrefixWalker:
    """Prefills batches in the order of the prefix tree with a single cache.

    Batches must be passed in tree order, since each overwrites tokens of earlier batches.

    Args:
        model: the model. If prompts cannot share prefixes with it, the tree must have no cuts.
        chunk: prefill chunk size in tokens.
        nodes: the nodes of the tree.
        requests: the requests to which the indices in leaves and nodes refer.
    """

    def __init__(
        self,
        model: LanguageModel,
        chunk: int,
        nodes: Sequence[PrefixNode],
        requests: Sequence[PromptRequest],
    ) -> None:
        self._model = model
        self._chunk = chunk
        self._nodes = nodes
        self._requests = requests
        self._cache = model.new_cache()
        self._path = [_Cut(None, 0, self._snapshot())]

    def _snapshot(self) -> Any:
        cache: Any = self._cache
        return None if self._model.full_reason is not None else cache.snapshot()

    def _resume(self) -> Cache | None:
        if self._model.full_reason is not None:
            self._cache = self._model.new_cache()
        else:
            cache: Any = self._cache
            cache.resume(self._path[-1].snapshot)
        return self._cache

    @torch.inference_mode()
    def prefill(self, batch: Sequence[Leaf], rows: Sequence[DecodingRow]) -> PrefilledRows:
        """Prefill the prompts of a batch, each from the cut at which it branches off.

        Raises:
            MemoryExhaustedError: the batch does not fit into memory.
        """
        pairs = zip(batch, rows, strict=True)
        groups = [
            (node, [row.request for _, row in group])
            for (node, _), group in itertools.groupby(pairs, key=lambda pair: pair[0].prefill_group)
        ]
        if len(groups) == 1:
            return PrefilledRows(rows, *self._prefill(*groups[0]))
        longest = max(leaf.num_tokens for leaf in batch)
        joined = JoinedRows(self._model.new_cache(), len(batch), longest)
        last_logits = []
        for node, requests in groups:
            logits, cache = self._prefill(node, requests)
            with catching_oom(longest):
                joined.add(cache, len(requests))
            last_logits.append(logits)
        return PrefilledRows(rows, torch.cat(last_logits), joined.cache)

    def _prefill(self, node: int, requests: Sequence[PromptRequest]) -> tuple[Tensor, Cache | None]:
        """Prefill prompts of equal length that branch off at one node."""
        self._enter(node)
        start = self._path[-1].num_tokens
        cache = self._resume()
        if len(requests) > 1:
            cache = self._forked(len(requests), start)
        tokens = token_rows([request.tokens[start:] for request in requests])
        return self._model.prefill(cache, tokens, self._chunk, start)

    def _enter(self, index: int) -> None:
        """Move the path to a node: drop cuts of other branches, and prefill missing prefixes."""
        ancestors = [index]
        while (parent := self._nodes[ancestors[-1]].parent) is not None:
            ancestors.append(parent)
        while self._path[-1].node not in (None, *ancestors):
            self._path.pop()
        entered = {cut.node for cut in self._path}
        for ancestor in reversed(ancestors):
            if ancestor in entered:
                continue
            node, start = self._nodes[ancestor], self._path[-1].num_tokens
            if node.cut > start:
                tokens = token_rows([self._requests[node.source].tokens[start : node.cut]])
                self._model.prefill(self._resume(), tokens, self._chunk, start)
            self._path.append(_Cut(ancestor, node.cut, self._snapshot()))

    def _forked(self, rows: int, start: int) -> Cache | None:
        empty = self._model.new_cache()
        if start == 0 or self._cache is None or empty is None:
            return empty
        with catching_oom(start):
            return fork(self._cache, empty, rows)
