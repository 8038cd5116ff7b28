"""What a data store says about itself, beside its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DataCounts:
    """What became of the rows.

    `rows` were read; `dropped` of them, by reason, gave no document. Of the `documents`,
    `over_length` were longer than a sequence; `fragments` counts the pieces that were cut of
    those, `untrained_fragments` the pieces left out since nothing in them is trained. `tokens`
    are those of the sequences, of which `padding_tokens` are filling and `trained_tokens` count
    in a loss.
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
    """How to read a data store, and what it was made of.

    Tokens are little-endian unsigned integers of `token_bytes` bytes, `sequence_tokens` a
    sequence, `sequences_per_shard` sequences a file. `config` is the DataConfig as JSON, and
    `tokenizer_sha256` is the tokenizer's identity: it covers all that determines how a text is
    split.
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
