"""The description of a data store (data.json, in the same folder as the manifest)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataCounts:
    """The numbers of rows, documents and tokens in the preparation of a data store.

    `rows` is the number of rows that were read. `dropped` maps each reason to the number of rows
    that yielded no document for that reason. `over_length` is the number of `documents` that are
    longer than a sequence. `fragments` is the number of pieces into which these were cut, and
    `untrained_fragments` the number of such pieces that were dropped because none of their tokens
    is trained. `tokens` is the length of all sequences, including `padding_tokens`. Only
    `trained_tokens` of these count in the loss.
    """

    rows: int
    dropped: Mapping[str, int]
    documents: int
    over_length: int
    fragments: int
    untrained_fragments: int
    tokens: int
    trained_tokens: int
    padding_tokens: int


@dataclass(frozen=True, kw_only=True)
class DataDescription:
    """The format and the origin of a data store.

    Token ids are stored as little-endian unsigned integers of `token_bytes` bytes. Each sequence
    has `sequence_tokens` tokens, and each shard `sequences_per_shard` sequences (the last shard may
    have fewer). `config` is the DataConfig as JSON. `tokenizer_sha256` is the tokenizer's identity,
    a hash of everything that determines how it splits a text.
    """

    name: str
    config: Mapping[str, object]
    tokenizer_sha256: str
    vocab_size: int
    token_bytes: int
    pad_token: int
    sequence_tokens: int
    isolate_documents: bool
    num_sequences: int
    sequences_per_shard: int
    counts: DataCounts
