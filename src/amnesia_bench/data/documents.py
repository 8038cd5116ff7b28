"""Turn rows into tokenised documents: texts with a separator, or conversations with a loss mask."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.config.data_schema import DataConfig, TextRows
from amnesia_bench.data.chat import Segment
from amnesia_bench.data.conversation import Row, read_conversation
from amnesia_bench.data.data_tokenizer import DataTokenizer
from amnesia_bench.data.dropped import DroppedRow, Reason
from amnesia_bench.data.rendering import Renderer
from amnesia_bench.data.row_forms import Columns, row_columns
from amnesia_bench.data.values import absent, text_value


@dataclass(frozen=True)
class TokenizedDocuments:
    """Concatenated documents: token ids uint32 [N], loss mask bool [N], lengths int64 [D].

    N is the number of tokens, D the number of documents.
    """

    tokens: NDArray[np.uint32]
    mask: NDArray[np.bool_]
    lengths: NDArray[np.int64]


class DocumentMaker:
    """Turns rows into tokenised documents, as a config describes."""

    def __init__(self, config: DataConfig, tokenizer: DataTokenizer) -> None:
        """Check that the tokenizer fits the config.

        Raises:
            UserError: the tokenizer lacks the separator, or does not fit the chat style.
        """
        self._config = config
        self._tokenizer = tokenizer
        rows = config.rows
        self._separator = (
            tokenizer.separator(rows.separator) if isinstance(rows, TextRows) else None
        )
        self._renderer = Renderer(config.chat, tokenizer) if config.chat is not None else None

    @property
    def columns(self) -> Columns:
        """The columns of an input file from which documents are made."""
        rows = self._config.rows
        if isinstance(rows, TextRows):
            return Columns(
                required=(rows.fields,), hint="To read another column: data.rows.fields=[NAME]"
            )
        return row_columns(rows)

    def sampled(self, file_identity: str, number: int) -> bool:
        """Return whether row `number` of a file is in the random sample (`sample_rows`)."""
        share = self._config.sample_rows
        if share == 1:
            return True
        key = f"{self._config.seed}/{file_identity}/{number}"
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") < share * 2**64

    def segments(self, row: Row, where: str) -> list[Segment]:
        """Return a row as text segments to tokenise.

        Raises:
            DroppedRow: the row cannot be used for training.
            UserError: a field is unknown, unusable or of the wrong type.
        """
        rows = self._config.rows
        if self._renderer is not None and not isinstance(rows, TextRows):
            return self._renderer.segments(read_conversation(rows, row, where))
        assert isinstance(rows, TextRows)
        field = next((name for name in rows.fields if not absent(row.get(name))), rows.fields[0])
        document = text_value(row.get(field), f"{where}: {field}")
        if not document.strip():
            raise DroppedRow(Reason.EMPTY)
        return [Segment(document, True)]

    def tokenise(self, documents: list[list[Segment]]) -> tuple[TokenizedDocuments, int]:
        """Tokenise documents, and return them with the number of skipped documents.

        A document is skipped if none of its tokens is trained.
        """
        segments = [segment for document in documents for segment in document]
        tokens, lengths = self._tokenizer.encode_batch(
            [segment.text for segment in segments], special_tokens=self._separator is None
        )
        mask = np.repeat(np.fromiter((s.trained for s in segments), np.bool_), lengths)
        counts = np.fromiter(map(len, documents), np.int64)
        lengths = _sums(lengths, counts)
        if self._separator is not None:
            ends = np.cumsum(lengths)
            tokens = np.insert(tokens, ends, self._separator)
            mask = np.insert(mask, ends, True)
            lengths = lengths + 1
        trained = _sums(mask.astype(np.int64), lengths) > 0
        if not trained.all():
            kept = np.repeat(trained, lengths)
            tokens, mask = tokens[kept], mask[kept]
        return TokenizedDocuments(tokens, mask, lengths[trained]), int((~trained).sum())


def _sums(values: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sum of each run of consecutive values; run i has `counts[i]` (or no) values."""
    totals = np.concatenate((np.zeros(1, np.int64), np.cumsum(values)))
    ends = np.cumsum(counts)
    sums: NDArray[np.int64] = totals[ends] - totals[ends - counts]
    return sums


def batches(
    segmented: Iterator[list[Segment]], max_characters: int
) -> Iterator[list[list[Segment]]]:
    """Yield batches of documents, each of about `max_characters` characters in total."""
    batch: list[list[Segment]] = []
    characters = 0
    for document in segmented:
        batch.append(document)
        characters += sum(len(segment.text) for segment in document)
        if characters >= max_characters:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
