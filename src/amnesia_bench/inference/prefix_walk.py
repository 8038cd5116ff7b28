"""Prefill prompts in the order of the prefix tree, each shared prefix and each repeat only once.

There is one exception: if rows of different lengths cannot be joined, a batch is one prefill call,
and a prompt that two batches share is prefilled again. Batches that end before such a prompt would
have fewer rows, which costs more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from amnesia_bench.inference.batch_decoder import PrefilledRows
from amnesia_bench.inference.batch_rows import rows_per_refill
from amnesia_bench.inference.caches import fork
from amnesia_bench.inference.language_model import LanguageModel, token_rows
from amnesia_bench.inference.memory import catching_oom
from amnesia_bench.inference.prefix_tree import Leaf, PrefixNode
from amnesia_bench.inference.protocol import PromptRequest

# The requests of one prompt, each with its place in the tree.
Repeats = Sequence[tuple[Leaf, PromptRequest]]


@dataclass(frozen=True, eq=False)
class _Cut:
    """A cut on the current path: its node (None before the root), length and cache snapshot."""

    node: int | None
    num_tokens: int
    snapshot: Any


@dataclass(frozen=True, eq=False)
class _WholePrompt:
    """A prompt at the end of the walker's cache, for repeats of it in the next batch."""

    prompt: int
    logits: Tensor
    snapshot: Any


class PrefixWalker:
    """Prefills batches in the order of the prefix tree with a single cache.

    Batches must be passed in tree order, since each overwrites tokens of earlier batches.

    Args:
        model: the model. If prompts cannot share prefixes with it, the tree must have no cuts and
            no repeats.
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
        self._whole: _WholePrompt | None = None

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

    def prefill(
        self, batch: Sequence[tuple[Leaf, PromptRequest]], following: Leaf | None
    ) -> Iterator[PrefilledRows]:
        """Prefill the prompts of a batch, each from the cut at which it branches off.

        The caller must use or copy a cache before it requests the next one. A cache with a single
        row is the walker's own: it may be extended until the next batch.

        Args:
            batch: the next prompts, in tree order.
            following: the first prompt of the next batch, if there is one.

        Raises:
            MemoryExhaustedError: the batch does not fit into memory.
        """
        repeated = None if following is None else following.prompt
        for _, members in itertools.groupby(batch, key=lambda item: item[0].prefill_group):
            runs = [list(run) for _, run in itertools.groupby(members, lambda item: item[0].prompt)]
            for part in self._parts(runs, repeated):
                yield self._prefilled(part, repeated)

    def _parts(self, runs: Sequence[Repeats], repeated: int | None) -> Iterator[list[Repeats]]:
        """Split a prefill group, given as repeats of each prompt, into calls of limited size."""
        if not self._model.joins_rows:
            yield list(runs)
            return
        begun = None if self._whole is None else self._whole.prompt
        leaf = runs[0][0][0]
        chunk = self._chunk if self._model.chunked_prefill else None
        limit = rows_per_refill(leaf.num_tokens, self._nodes[leaf.node].cut, chunk)
        part: list[Repeats] = []
        for run in runs:
            # A prompt that two batches share is prefilled alone, in the walker's own cache.
            alone = any(one[0][0].prompt in (begun, repeated) for one in (run, *part[-1:]))
            if part and (alone or len(part) == limit):
                yield part
                part = []
            part.append(run)
        yield part

    @torch.inference_mode()
    def _prefilled(self, part: Sequence[Repeats], repeated: int | None) -> PrefilledRows:
        """Prefill different prompts of equal length that branch off at one node."""
        leaf = part[0][0][0]
        whole = self._whole
        if len(part) == 1 and whole is not None and whole.prompt == leaf.prompt:
            resumable: Any = self._cache
            resumable.resume(whole.snapshot)
            logits, cache = whole.logits, self._cache
        else:
            self._whole = None
            logits, cache = self._prefill(leaf.node, [run[0][1] for run in part])
            if len(part) == 1 and leaf.prompt == repeated:
                self._whole = _WholePrompt(leaf.prompt, logits, self._snapshot())
        copies = [i for i, run in enumerate(part) for _ in run]
        if not self._model.joins_rows and len(copies) > len(part):
            return PrefilledRows(logits[copies], self._copied(cache, copies), range(len(copies)))
        return PrefilledRows(logits, cache, copies)

    def _copied(self, cache: Cache | None, copies: Sequence[int]) -> Cache | None:
        """Return a cache with copies of the rows of `cache`, which may be the walker's own."""
        if cache is self._cache:
            return self._forked(len(copies))
        assert cache is not None
        index: Any = torch.tensor(copies)
        with catching_oom(cache.get_seq_length()):
            cache.reorder_cache(index)
        return cache

    def _prefill(self, node: int, requests: Sequence[PromptRequest]) -> tuple[Tensor, Cache | None]:
        """Prefill prompts of equal length that branch off at one node."""
        self._enter(node)
        start = self._path[-1].num_tokens
        cache = self._resume()
        if len(requests) > 1:
            cache = self._forked(len(requests)) if start else self._model.new_cache()
        tokens = token_rows([request.tokens for request in requests])
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
                tokens = token_rows([self._requests[node.source].tokens[: node.cut]])
                self._model.prefill(self._resume(), tokens, self._chunk, start)
            self._path.append(_Cut(ancestor, node.cut, self._snapshot()))

    def _forked(self, rows: int) -> Cache:
        """Return a new cache with `rows` copies of the walker's row."""
        empty = self._model.new_cache()
        assert self._cache is not None
        assert empty is not None
        with catching_oom(self._cache.get_seq_length()):
            return fork(self._cache, empty, rows)
