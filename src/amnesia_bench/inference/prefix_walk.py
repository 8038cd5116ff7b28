"""One cache on its way through the tree of prefixes, and the prompts it reads there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from amnesia_bench.inference.caches import JoinedRows, fork
from amnesia_bench.inference.decoding import DecodingRow, ReadRows
from amnesia_bench.inference.language_model import LanguageModel, reaching, token_rows
from amnesia_bench.inference.prefix_tree import Leaf, PrefixNode
from amnesia_bench.inference.protocol import PromptRequest


@dataclass(frozen=True, eq=False)
class _Cut:
    """A place on the present path: its node (None is the start), its tokens, the way back."""

    node: int | None
    num_tokens: int
    snapshot: Any


class PrefixWalker:
    """Holds the cache. Batches must come in the order of the tree: what one overwrites is lost.

    Args:
        model: the model. One whose prompts cannot share prefixes needs a tree without cuts.
        chunk: tokens per piece of a prompt.
        nodes: the tree.
        requests: what its leaves and sources count.
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
    def read(self, batch: Sequence[Leaf], rows: Sequence[DecodingRow]) -> ReadRows:
        """Read the prompts of a batch, each from the cut where it leaves the common text.

        Raises:
            MemoryExhaustedError: memory did not reach for all of them.
        """
        pairs = zip(batch, rows, strict=True)
        groups = [
            (node, [row.request for _, row in group])
            for (node, _), group in itertools.groupby(pairs, key=lambda pair: pair[0].reading)
        ]
        if len(groups) == 1:
            return ReadRows(rows, *self._read(*groups[0]))
        longest = max(leaf.num_tokens for leaf in batch)
        joined = JoinedRows(self._model.new_cache(), len(batch), longest)
        found = []
        for node, requests in groups:
            logits, cache = self._read(node, requests)
            with reaching(longest):
                joined.add(cache, len(requests))
            found.append(logits)
        padding = torch.tensor([longest - leaf.num_tokens for leaf in batch])
        return ReadRows(rows, torch.cat(found), joined.cache, padding.to(self._model.device))

    def _read(self, node: int, requests: Sequence[PromptRequest]) -> tuple[Tensor, Cache | None]:
        """Read prompts of equal length that leave the common text at one node."""
        self._enter(node)
        start = self._path[-1].num_tokens
        cache = self._resume()
        if len(requests) > 1:
            cache = self._forked(len(requests), start)
        tokens = token_rows([request.tokens[start:] for request in requests])
        return self._model.read(cache, tokens, self._chunk, start)

    def _enter(self, index: int) -> None:
        """Bring the path to a node, by way of those of its ancestors that are not on it."""
        way = [index]
        while (parent := self._nodes[way[-1]].parent) is not None:
            way.append(parent)
        while self._path[-1].node not in (None, *way):
            self._path.pop()
        entered = {cut.node for cut in self._path}
        for here in reversed(way):
            if here in entered:
                continue
            node, start = self._nodes[here], self._path[-1].num_tokens
            if node.cut > start:
                tokens = token_rows([self._requests[node.source].tokens[start : node.cut]])
                self._model.read(self._resume(), tokens, self._chunk, start)
            self._path.append(_Cut(here, node.cut, self._snapshot()))

    def _forked(self, rows: int, start: int) -> Cache | None:
        empty = self._model.new_cache()
        if start == 0 or self._cache is None or empty is None:
            return empty
        with reaching(start):
            return fork(self._cache, empty, rows)
