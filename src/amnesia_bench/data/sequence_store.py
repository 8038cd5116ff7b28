"""A data store on disk: memory-mapped shards of sequences of fixed length.

data.json                the description of the store (records.data.DataDescription)
tokens-00000.bin         sequences of T token ids, as little-endian unsigned integers
mask-00000.bin           loss mask, ceil(T / 8) bytes per sequence, first token in the lowest bit
document_lengths.bin     int32, document lengths of all sequences in order, without padding
document_offsets.bin     int64 [sequences + 1], index of each sequence's first document length
tokenizer.json           the tokenizer, for decoding token ids
manifest.json            the manifest, written last

Shapes: T is the number of tokens per sequence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.data import DataDescription
from amnesia_bench.store.files import read_json
from amnesia_bench.store.hashing import compare_sizes, read_manifest, sha256_of

KIND = "data"
DESCRIPTION = "data.json"
TOKENIZER = "tokenizer.json"
_LENGTHS = "document_lengths.bin"
_OFFSETS = "document_offsets.bin"
_SHARD_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class PackedSequence:
    """One sequence: token ids int32 [T] and loss mask bool [T] (whether each token is a target).

    `document_lengths` add up to T. If the documents do not fill the sequence, the last length is
    that of the padding, which is never trained; `padding` is this length, or 0.
    """

    tokens: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    document_lengths: tuple[int, ...]
    padding: int = 0


class SequenceStore:
    """A finished data store, open for reading; processes and threads may use it concurrently."""

    def __init__(self, folder: Path, description: DataDescription, sha256: str) -> None:
        self.folder = folder
        self.description = description
        self.sha256 = sha256
        self.tokenizer_sha256 = description.tokenizer_sha256
        self.vocab_size = description.vocab_size
        self.sequence_tokens = description.sequence_tokens
        self.isolate_documents = description.isolate_documents
        self.num_sequences = description.num_sequences
        shards = range(-(-self.num_sequences // description.sequences_per_shard))
        dtype = np.dtype(f"<u{description.token_bytes}")
        width = self.sequence_tokens
        self._tokens = [_rows(folder / _tokens_file(i), dtype, width) for i in shards]
        self._masks = [
            _rows(folder / _mask_file(i), np.dtype(np.uint8), -(-width // 8)) for i in shards
        ]
        self._offsets = np.memmap(folder / _OFFSETS, np.dtype("<i8"), "r")
        self._lengths = np.memmap(folder / _LENGTHS, np.dtype("<i4"), "r")

    @property
    def packs_documents(self) -> bool:
        """Whether any sequence contains more than one document or piece of a document."""
        return bool((np.diff(self._offsets) > 1).any())

    def sequence(self, i: int) -> PackedSequence:
        """Return a copy of the sequence with 0-based index `i`."""
        if not 0 <= i < self.num_sequences:
            raise IndexError(f"sequence {i} of {self.num_sequences} in {self.folder}")
        shard, row = divmod(i, self.description.sequences_per_shard)
        bits = np.unpackbits(self._masks[shard][row], count=self.sequence_tokens, bitorder="little")
        begin, end = (int(offset) for offset in self._offsets[i : i + 2])
        lengths = tuple(int(length) for length in self._lengths[begin:end])
        padding = self.sequence_tokens - sum(lengths)
        if padding:
            lengths = (*lengths, padding)
        tokens = self._tokens[shard][row].astype(np.int32)
        return PackedSequence(tokens, bits.astype(np.bool_), lengths, padding)


def open_store(folder: Path) -> SequenceStore:
    """Open a data store that `amnesia data prepare` wrote.

    The `sha256` of the returned store identifies its contents: two preparations of the same data
    give the same hash.

    Raises:
        UserError: the folder is not a finished data store, or no longer matches its manifest.
    """
    manifest = read_manifest(folder)
    if manifest.kind != KIND:
        raise UserError(
            f"{folder}: contains {manifest.kind}, not training data",
            hint="Prepare training data with: amnesia data prepare",
        )
    changed = [f"{finding.path} {finding.problem}" for finding in compare_sizes(folder, manifest)]
    hashes = {entry.path: entry.sha256 for entry in manifest.files}
    # Shards are too large to be hashed whenever a store is opened; `amnesia data inspect` does so.
    small_files = (DESCRIPTION, TOKENIZER, _OFFSETS)
    if not changed:
        changed = [
            f"{name} has different contents"
            for name in small_files
            if sha256_of(folder / name) != hashes.get(name)
        ]
    if changed:
        raise UserError(
            f"{folder}: changed since it was written: {'; '.join(changed)}",
            hint="Prepare it again.",
        )
    where = str(folder / DESCRIPTION)
    description = codec.from_json(DataDescription, read_json(folder / DESCRIPTION), where)
    text = "\n".join(f"{path} {digest}" for path, digest in sorted(hashes.items()))
    return SequenceStore(folder, description, hashlib.sha256(text.encode()).hexdigest())


class SequenceWriter:
    """Writes sequences one by one to the files of a store."""

    def __init__(self, folder: Path, sequence_tokens: int, token_bytes: int, pad: int) -> None:
        self._folder = folder
        self.sequence_tokens = sequence_tokens
        self._dtype = np.dtype(f"<u{token_bytes}")
        self._pad = pad
        self.sequences_per_shard = max(1, _SHARD_BYTES // (sequence_tokens * token_bytes))
        self.num_sequences = 0
        self.trained_tokens = 0
        self.padding_tokens = 0
        self._num_lengths = 0
        self._lengths = (folder / _LENGTHS).open("wb")
        self._offsets = (folder / _OFFSETS).open("wb")
        self._shard: tuple[IO[bytes], IO[bytes]] | None = None
        self._write_offset()

    def add(self, pieces: Iterable[tuple[NDArray[np.unsignedinteger], NDArray[np.bool_]]]) -> None:
        """Append a sequence that consists of pieces, each a pair (token ids, loss mask).

        The pieces must have at most T tokens in total.
        """
        tokens = np.full(self.sequence_tokens, self._pad, self._dtype)
        mask = np.zeros(self.sequence_tokens, np.bool_)
        lengths, end = [], 0
        for piece, trained in pieces:
            begin, end = end, end + len(piece)
            tokens[begin:end], mask[begin:end] = piece, trained
            lengths.append(len(piece))
        tokens_file, mask_file = self._files()
        tokens_file.write(tokens.data)
        mask_file.write(np.packbits(mask, bitorder="little").data)
        self._lengths.write(np.array(lengths, "<i4").data)
        self._num_lengths += len(lengths)
        self._write_offset()
        self.num_sequences += 1
        self.padding_tokens += self.sequence_tokens - end
        self.trained_tokens += int(mask.sum())

    def close(self) -> None:
        """Close all files of the store."""
        for file in (*(self._shard or ()), self._lengths, self._offsets):
            file.close()

    def _write_offset(self) -> None:
        self._offsets.write(np.array([self._num_lengths], "<i8").data)

    def _files(self) -> tuple[IO[bytes], IO[bytes]]:
        number, row = divmod(self.num_sequences, self.sequences_per_shard)
        if self._shard is None or row == 0:
            for file in self._shard or ():
                file.close()
            self._shard = (
                (self._folder / _tokens_file(number)).open("wb"),
                (self._folder / _mask_file(number)).open("wb"),
            )
        return self._shard


def _tokens_file(number: int) -> str:
    return f"tokens-{number:05d}.bin"


def _mask_file(number: int) -> str:
    return f"mask-{number:05d}.bin"


def _rows(path: Path, dtype: np.dtype[Any], width: int) -> NDArray[Any]:
    return np.memmap(path, dtype, "r").reshape(-1, width)
