"""The description of a data store, next to its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataCounts:
    """How many rows were read, and what they were turned into.

    `rows` counts the rows that were read, `dropped` those without a document, by reason. Of the
    `documents`, `over_length` were longer than a sequence. `fragments` counts the pieces into which
    those were split, `untrained_fragments` the dropped pieces without a trained token. `tokens`
    counts the tokens of all sequences, including `padding_tokens`; `trained_tokens` count in the
    loss.
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

    Tokens are little-endian unsigned integers of `token_bytes` bytes, with `sequence_tokens` tokens
    per sequence and `sequences_per_shard` sequences per file. `config` is the DataConfig as JSON.
    `tokenizer_sha256` is the tokenizer's identity: it covers everything that determines how a text
    is split.
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
