"""Token-by-token decoding of a batch, whose finished rows are replaced by new prompts.

All rows of the batch's cache end in the same column, and shorter rows have padding on the left. A
refill copies the unfinished rows into a new cache, which is as long as the longest of them, and
adds the new rows. The same happens without new rows when the batch has become much smaller.

Shapes: B rows, N new rows, E vocabulary size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from amnesia_bench.inference.batch_rows import RefillRule
from amnesia_bench.inference.caches import JoinedRows
from amnesia_bench.inference.decoding import DecodingRow, Stopping, not_finite
from amnesia_bench.inference.language_model import LanguageModel
from amnesia_bench.inference.memory import catching_oom
from amnesia_bench.inference.sampling import choose, choose_by_sorting
from amnesia_bench.modeling.hybrid_cache import BLOCK_TOKENS
from amnesia_bench.modeling.packing import copy_to_device
from amnesia_bench.records.evaluation import Sampling


@dataclass(frozen=True, eq=False)
class PrefilledRows:
    """Prefilled prompts of equal length.

    `logits` are the logits after the last token of each prompt, and `cache` has a row for each.
    `copies` are the indices of the prompts that N new rows of a batch continue: several rows may
    continue the same prompt.
    """

    logits: Tensor
    cache: Cache | None
    copies: Sequence[int]


class BatchDecoder:
    """Decodes the rows of a batch step by step.

    Args:
        model: the model.
        stopping: the end token ids, and a function that converts token ids to text.
        limit: the context of the model in tokens, or None for no limit.
    """

    def __init__(self, model: LanguageModel, stopping: Stopping, limit: int | None = None) -> None:
        self._model = model
        self._stopping = stopping
        self._limit = limit
        self._rule = RefillRule()
        self._rows: list[DecodingRow] = []
        self._cache: Cache | None = None
        self._logits: Tensor | None = None
        self._num_columns = 0
        self._padding: list[int] = []  # the padding tokens before each row
        self._padding_on_device: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """The number of rows in the cache, with finished ones."""
        return len(self._rows)

    @property
    def wants_rows(self) -> bool:
        """Whether now is the time to add rows, if prompts are waiting."""
        return self._rule.due(len(self._running))

    @property
    def _running(self) -> list[int]:
        return [i for i, row in enumerate(self._rows) if row.finish_reason is None]

    @torch.inference_mode()
    def refill(self, rows: Sequence[DecodingRow], parts: Iterable[PrefilledRows]) -> None:
        """Add rows to the batch, and remove its finished rows.

        Args:
            rows: the new rows. A batch of a model that cannot join rows must be finished.
            parts: the prefilled prompts of the rows, in the same order. Each part is requested when
                the one before it has been copied. If a single part has one row for each prompt, the
                batch takes over its cache.

        Raises:
            MemoryExhaustedError: memory ran out; the batch cannot be used any more.
        """
        self._rule.refilled()
        with catching_oom(self._num_columns):
            self._refill(rows, parts)
            self._copy_padding()

    def _refill(self, rows: Sequence[DecodingRow], parts: Iterable[PrefilledRows]) -> None:
        kept = self._running
        logits = [self._logits[kept]] if kept and self._logits is not None else []
        kept_rows = [self._rows[i] for i in kept]
        joined = self._joined(rows) if kept else None
        self._rows, self._cache, self._logits = [], None, None
        for part in parts:
            if joined is None and list(part.copies) == list(range(len(rows))):
                self._cache, logits = part.cache, [part.logits]
                self._num_columns, self._padding = len(rows[0].request.tokens), [0] * len(rows)
                break
            joined = joined or self._joined(rows)
            joined.add(part.cache, part.copies)
            logits.append(part.logits[list(part.copies)])
        if joined is not None:
            self._cache = joined.cache
        self._rows, self._logits = [*kept_rows, *rows], torch.cat(logits)

    def _joined(self, new: Sequence[DecodingRow]) -> JoinedRows:
        """Return a new cache for the unfinished rows and `new` rows; it contains the former."""
        kept = self._running
        own = [self._num_columns - self._padding[i] for i in kept]
        own += [len(row.request.tokens) for row in new]
        joined = JoinedRows(self._model.new_cache(), len(own), max(own))
        if kept:
            joined.add(self._cache, kept, release=True)
        self._cache = None
        self._num_columns = max(own)
        self._padding = [self._num_columns - columns for columns in own]
        return joined

    def _copy_padding(self) -> None:
        assert self._logits is not None
        padding = torch.tensor(self._padding) if any(self._padding) else None
        self._padding_on_device = (
            None if padding is None else copy_to_device(padding, self._logits.device)
        )

    @torch.inference_mode()
    def step(self, *, refills: bool = False) -> Iterator[DecodingRow]:
        """Choose one token for each row, yield each row that it finishes, and run the model.

        Args:
            refills: whether prompts are waiting to take the places of finished rows. Otherwise the
                finished rows are removed when they are half of the batch.

        Raises:
            MemoryExhaustedError: memory ran out; the batch cannot be used any more.
            StageFailedError: the logits of an unfinished row are not finite, so it has no answer.
                Rows that were yielded before keep their answers.
        """
        with catching_oom(self._num_columns):
            tokens, chosen = self._next_tokens()
        for row, (token, finite) in zip(self._rows, chosen, strict=True):
            if row.finish_reason is None:
                if not finite:
                    raise not_finite(row.request, len(row.tokens))
                row.append(token, *self._stopping)
                if row.finish_reason is not None:
                    yield row
        running = self._running
        self._rule.after_step(len(running), len(self._rows))
        if not running:
            self._rows, self._cache, self._logits = [], None, None
            return
        with catching_oom(self._num_columns):
            few = len(running) <= len(self._rows) // 2 and not refills
            if self._model.cache_class is not None and (few or self._is_too_long(running)):
                tokens = tokens[running]
                self._shrink(running)
            self._logits, self._cache = self._model.advance(
                self._cache, tokens[:, None], self._padding_on_device
            )
        self._num_columns += 1

    def _is_too_long(self, running: Sequence[int]) -> bool:
        """Return whether finished rows make the cache too long for the other rows.

        This is so if an eighth of the cache is padding in all unfinished rows, or if a finished row
        has reached the end of the context.
        """
        unused = min(self._padding[i] for i in running)
        longest = self._num_columns - min(self._padding)
        at_limit = self._limit is not None and longest >= self._limit
        return at_limit or unused >= max(BLOCK_TOKENS, self._num_columns // 8)

    def _shrink(self, running: Sequence[int]) -> None:
        """Remove the finished rows, and the columns that are padding in all others.

        This costs about as much as a step, and all later steps cost less.
        """
        if self._model.joins_rows:
            self._cache = self._joined([]).cache
        else:
            assert self._cache is not None
            index: Any = torch.tensor(running)
            self._cache.reorder_cache(index)
            self._padding = [0] * len(running)
        self._rows = [self._rows[i] for i in running]
        self._copy_padding()

    def _next_tokens(self) -> tuple[Tensor, list[tuple[int, bool]]]:
        """Return the next token id of each row [B], and with it whether its logits are finite."""
        logits = self._logits
        assert logits is not None
        draws = [0.0 if row.request.sampling.greedy else row.draw() for row in self._rows]
        uniform = copy_to_device(torch.tensor(draws, dtype=torch.float64), logits.device)
        groups = self._by_sampling(range(len(self._rows)))
        if len(groups) == 1:
            tokens, uncertain = choose(logits, self._rows[0].request.sampling, uniform)
        else:
            tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
            uncertain = torch.empty_like(tokens, dtype=torch.bool)
            for sampling, rows in groups.items():
                tokens[rows], uncertain[rows] = choose(logits[rows], sampling, uniform[rows])
        # If the largest logit is finite, none is NaN; single logits of -inf are valid, since a
        # model excludes tokens in this way. Without this check, argmax would still return a token.
        finite = logits.amax(dim=-1).isfinite()
        # The only copy from the device, which waits until the device is idle.
        read = torch.stack([tokens, finite.long(), uncertain.long()], dim=1).tolist()
        unsure = [i for i in self._running if read[i][2]]
        if unsure:
            for sampling, rows in self._by_sampling(unsure).items():
                tokens[rows] = choose_by_sorting(logits[rows], sampling, uniform[rows])
            for line, token in zip(read, tokens.tolist(), strict=True):
                line[0] = token
        return tokens, [(token, bool(valid)) for token, valid, _ in read]

    def _by_sampling(self, rows: Iterable[int]) -> dict[Sampling, list[int]]:
        groups: dict[Sampling, list[int]] = {}
        for i in rows:
            groups.setdefault(self._rows[i].request.sampling, []).append(i)
        return groups


def decode_batch(
    model: LanguageModel, rows: Sequence[DecodingRow], part: PrefilledRows, stopping: Stopping
) -> Iterator[DecodingRow]:
    """Decode the answers of some rows without refills; yield each row when it is finished.

    Args:
        model: the model.
        rows: the rows.
        part: their prefilled prompts.
        stopping: the end token ids, and a function that converts token ids to text.

    Raises:
        MemoryExhaustedError: memory ran out before all rows were finished.
        StageFailedError: the logits of an unfinished row are not finite.
    """
    decoder = BatchDecoder(model, stopping)
    decoder.refill(rows, [part])
    while decoder.num_rows:
        yield from decoder.step()
