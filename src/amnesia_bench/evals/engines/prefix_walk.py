"""One cache on its way through the tree of prefixes, and the answers it gives there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache

from amnesia_bench.evals.engines.cache_snapshots import fork
from amnesia_bench.evals.engines.decoding import Row, Stopping, finish
from amnesia_bench.evals.engines.language_model import LanguageModel
from amnesia_bench.evals.engines.out_of_memory import (
    MemoryExhaustedError,
    reaching,
    release_memory,
)
from amnesia_bench.evals.engines.prefix_tree import PrefixNode
from amnesia_bench.evals.engines.protocol import Request


@dataclass(frozen=True, eq=False)
class _Cut:
    """A place on the present path: its node (None is the start), its tokens, the way back."""

    node: int | None
    num_tokens: int
    snapshot: Any


class PrefixWalker:
    """Holds the cache; enter nodes in the order of the plan, and answer at each.

    Args:
        model: the model. One whose prompts cannot share prefixes needs a plan without cuts.
        chunk: tokens per piece of a prompt.
    """

    def __init__(self, model: LanguageModel, chunk: int) -> None:
        self._model = model
        self._chunk = chunk
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
    def enter(self, nodes: Sequence[PrefixNode], index: int, requests: Sequence[Request]) -> None:
        """Bring the cache to the cut of a node, whose parent was entered before.

        Raises:
            MemoryExhaustedError: it is too long.
        """
        node = nodes[index]
        while self._path[-1].node != node.parent:
            self._path.pop()
        start = self._path[-1].num_tokens
        if node.cut > start:
            tokens = _rows([requests[node.source]], start, node.cut)
            self._model.read(self._resume(), tokens, self._chunk, start)
        self._path.append(_Cut(index, node.cut, self._snapshot()))

    @torch.inference_mode()
    def answer(self, rows: Sequence[Row], stopping: Stopping) -> bool:
        """Complete rows of equal length and sampling whose prompts go on from the present cut.

        Returns:
            False when there was not enough memory for more than one row; nothing is lost but
            time.

        Raises:
            MemoryExhaustedError: it did not reach for one row.
        """
        start = self._path[-1].num_tokens
        try:
            cache = self._resume()
            if len(rows) > 1:
                cache = self._forked(len(rows), start)
            tokens = _rows([row.request for row in rows], start, None)
            logits, cache = self._model.read(cache, tokens, self._chunk, start)
            finish(self._model, cache, logits, rows, stopping)
        except MemoryExhaustedError:
            if len(rows) == 1:
                raise
            cache = None
        else:
            return True
        release_memory()
        return False

    def _forked(self, rows: int, start: int) -> Cache | None:
        empty = self._model.new_cache()
        if start == 0 or self._cache is None or empty is None:
            return empty
        with reaching(start):
            return fork(self._cache, empty, rows)


def _rows(requests: Sequence[Request], start: int, stop: int | None) -> Tensor:
    """Return tokens int64 [B, stop - start] of prompts of equal length."""
    return torch.from_numpy(np.stack([r.tokens[start:stop] for r in requests])).long()
