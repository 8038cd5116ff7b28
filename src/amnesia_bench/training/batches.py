"""Build the batch of each step, with its trained tokens, as a pure function of the step number.

Shapes: B sequences in a micro-batch, T tokens in a sequence, N trained positions.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.modeling import PackedRows


class TokenSequence(Protocol):
    """A row of T token ids: concatenated documents, possibly followed by padding."""

    @property
    def tokens(self) -> NDArray[np.int32]: ...
    @property
    def loss_mask(self) -> NDArray[np.bool_]: ...
    @property
    def document_lengths(self) -> tuple[int, ...]: ...


class TokenStore(Protocol):
    """The memory-mapped prepared data of one source."""

    @property
    def tokenizer_sha256(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def sequence_tokens(self) -> int: ...
    @property
    def isolate_documents(self) -> bool: ...
    @property
    def packs_documents(self) -> bool: ...
    @property
    def num_sequences(self) -> int: ...
    def sequence(self, index: int, /) -> TokenSequence: ...


class SequenceOrder(Protocol):
    """An infinite sequence of samples: maps a sample index to (source index, sequence index)."""

    def sample(self, index: int, /) -> tuple[int, int]: ...


class FileOrder:
    """The order without shuffling: all sequences of each source in turn, repeated every epoch."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._ends = list(itertools.accumulate(sizes))

    def sample(self, index: int) -> tuple[int, int]:
        """Return the source index and the sequence index of the `index`-th sample (from 0)."""
        within = index % self._ends[-1]
        source = next(i for i, end in enumerate(self._ends) if within < end)
        return source, within - (self._ends[source - 1] if source else 0)


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The input of one forward pass in one process.

    `input_ids` has shape [B, T]. If several documents of a row must be isolated, its shape is
    [1, B * T], and `packed` contains the document bounds. Position `targets_at[n]` of the flattened
    `input_ids` predicts the token id `targets[n]`.
    """

    input_ids: Tensor
    packed: PackedRows | None
    targets_at: Tensor  # [N]
    targets: Tensor  # [N]

    def to(self, device: torch.device) -> MicroBatch:
        """Copy the micro-batch to a device; for the CPU, return it unchanged."""
        if device.type == "cpu":
            return self
        packed = None if self.packed is None else self.packed.to(device)
        ids, at, targets = (
            x.pin_memory().to(device, non_blocking=True)
            for x in (self.input_ids, self.targets_at, self.targets)
        )
        return MicroBatch(input_ids=ids, packed=packed, targets_at=at, targets=targets)


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """The part of a step's batch that one process trains on.

    `checksum` identifies the token ids and loss masks. Its sum over all processes does not depend
    on the number of processes.
    """

    micro_batches: tuple[MicroBatch, ...]
    documents: int
    checksum: int


class Batches:
    """Divides the infinite sequence of samples into steps, and each step among the processes.

    Args:
        run: the stage and the recipe of the run.
        stores: the data of each source by its name, in the order of the source indices of `order`.
        order: maps each sample index to a sequence.
        rank: rank of this process.
        size: number of processes.

    Raises:
        UserError: the global batch is not divisible by processes x micro-batch.
    """

    def __init__(
        self,
        run: TrainingRun,
        stores: Mapping[str, TokenStore],
        order: SequenceOrder,
        rank: int,
        size: int,
    ) -> None:
        self._run, self._order = run, order
        self._names, self._stores = list(stores), list(stores.values())
        self._rank, self._size = rank, size
        batch, micro = run.train.global_batch, run.train.micro_batch
        if batch % (micro * size):
            raise UserError(
                f"a global batch of {batch} sequences cannot be divided among {size} processes "
                f"with micro-batches of {micro}",
                hint="Use another number of processes, or change train.micro_batch.",
            )
        self.accumulation = batch // (micro * size)

    def step(self, step: int) -> StepBatch:
        """Return this process's part of the batch of step number `step`; steps start at 1.

        Raises:
            StageFailedError: a sequence cannot be read, has the wrong length, or has no trained
                token.
        """
        train = self._run.train
        start = (step - 1) * train.global_batch
        micro_batches, documents, checksum = [], 0, 0
        for i in range(self.accumulation):
            first = start + (i * self._size + self._rank) * train.micro_batch
            rows = [self._read(index, step) for index in range(first, first + train.micro_batch)]
            micro_batches.append(_collate(rows, self._run.isolate_documents))
            documents += sum(len(row.document_lengths) for row in rows)
            checksum += sum(_checksum(row) for row in rows)
        return StepBatch(micro_batches=tuple(micro_batches), documents=documents, checksum=checksum)

    def _read(self, index: int, step: int) -> TokenSequence:
        source, number = self._order.sample(index)
        row = self._stores[source].sequence(number)
        where = f"step {step}: sequence {number} of {self._names[source]}"
        if len(row.tokens) != self._run.train.sequence_tokens:
            raise StageFailedError(f"{where} has {len(row.tokens)} tokens")
        trained = _predictable(row, self._run.isolate_documents)
        if self._run.train.objective == "next_token" and not trained.any():
            raise StageFailedError(
                f"{where} has no trained token",
                hint="Prepare the data again: every sequence should have a trained token.",
            )
        return row


def _predictable(row: TokenSequence, isolate: bool) -> NDArray[np.bool_]:
    """Return the mask of the tokens to predict.

    A token must be in the loss mask, and must not be the first token of the row or, if documents
    are isolated, of its document.
    """
    mask = np.array(row.loss_mask, dtype=bool)
    mask[0] = False
    if isolate:
        starts = np.cumsum(row.document_lengths)
        mask[starts[starts < len(mask)]] = False
    return mask


def _collate(rows: Sequence[TokenSequence], isolate: bool) -> MicroBatch:
    tokens = np.stack([row.tokens for row in rows]).astype(np.int64)
    trained = np.stack([_predictable(row, isolate) for row in rows])
    predicted = trained.ravel().nonzero()[0]
    input_ids = torch.from_numpy(tokens)
    packed = None
    # Models are causal, so documents need no isolation if only the first of each row is trained.
    if isolate and any(
        of_row[row.document_lengths[0] :].any() for row, of_row in zip(rows, trained, strict=True)
    ):
        input_ids = input_ids.view(1, -1)
        packed = PackedRows.from_cu_seqlens(_bounds(rows), input_ids.shape[1], input_ids.device)
    return MicroBatch(
        input_ids=input_ids,
        packed=packed,
        # The output at one position predicts the token at the next position.
        targets_at=torch.from_numpy(predicted - 1),
        targets=torch.from_numpy(tokens.ravel()[predicted]),
    )


def _bounds(rows: Sequence[TokenSequence]) -> list[int]:
    """Return the bounds of all documents in the concatenated rows; padding counts as a document."""
    bounds = [0]
    for row in rows:
        end = bounds[-1] + len(row.tokens)
        bounds += [bounds[-1] + int(n) for n in np.cumsum(row.document_lengths)]
        if bounds[-1] < end:
            bounds.append(end)
    return bounds


def _checksum(row: TokenSequence) -> int:
    tokens: Any = np.ascontiguousarray(row.tokens, dtype=np.int32)
    mask: Any = np.packbits(row.loss_mask)
    return zlib.crc32(mask, zlib.crc32(tokens))
