"""Prepare training data: rows -> token ids (one part per input file) -> packed sequences.

If the process is killed at any moment, the same command resumes with the unfinished input files,
and publishes the same bytes. It needs memory for a few batches of rows and, while packing, about 24
bytes per document.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np

import amnesia_bench
from amnesia_bench.config.data_schema import DataConfig
from amnesia_bench.data.chat import Segment
from amnesia_bench.data.data_tokenizer import DataTokenizer
from amnesia_bench.data.documents import DocumentMaker, TokenizedDocuments, batches
from amnesia_bench.data.dropped import DROP_HINTS, DroppedRow, Reason
from amnesia_bench.data.packing import (
    Pieces,
    concatenate,
    pack_best_fit,
    pack_single,
    whole_documents,
)
from amnesia_bench.data.parts import (
    Corpus,
    PartsFolder,
    PartSummary,
    dropped_by_reason,
    remove_parts,
)
from amnesia_bench.data.sequence_store import DESCRIPTION, KIND, TOKENIZER, SequenceWriter
from amnesia_bench.data.sources import (
    InputFile,
    held_out_files,
    local_files,
    read_rows,
    source_files,
)
from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.printable import printable
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.data import DataCounts, DataDescription
from amnesia_bench.requests.data import PrepareRequest
from amnesia_bench.store.files import write_json
from amnesia_bench.store.layout import MANIFEST, resumable_path
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing
from amnesia_bench.tokenizers.tokenizer import load_tokenizer

_BATCH_CHARACTERS = 1 << 20
# The tokenizer's threads process one batch while Python reads the next and writes the previous.
_BATCHES_AHEAD = 2
_REPORT_SEQUENCES = 1000


@dataclass(frozen=True, kw_only=True)
class PreparationProgress:
    """The progress of one step: tokenising one input file, or packing all documents.

    `done` is the number of documents while tokenising, and the number of sequences while packing.
    `reused` is true if an earlier attempt finished this input file, `held_out` if the file is
    skipped because its name marks it as test data. After packing, `dropped` is the location of the
    first dropped row with its reason, and `unread` are the columns that were not read.
    """

    step: str
    done: int = 0
    tokens: int = 0
    finished: bool = False
    reused: bool = False
    held_out: bool = False
    dropped: str | None = None
    unread: tuple[str, ...] = ()


Report = Callable[[PreparationProgress], None]


def _silent(progress: PreparationProgress) -> None:
    pass


def prepare(request: PrepareRequest, out: Path, *, progress: Report = _silent) -> DataDescription:
    """Write a data store to `out`, atomically.

    If it fails, the parts of finished input files are kept for the next attempt.

    Args:
        request: the inputs, the tokenizer, and the config of the data.
        out: the folder to write; must not exist yet.
        progress: a callback that gets each progress update.

    Raises:
        UserError: the config, the tokenizer or an input is wrong.
        StageFailedError: too many rows are unusable, no document remains, or the disk is full.
    """
    config, inputs = request.config, request.inputs
    tokenizer = DataTokenizer(load_tokenizer(request.tokenizer))
    maker = DocumentMaker(config, tokenizer)
    files = local_files(inputs) if inputs else source_files(config.source)
    for path in held_out_files(inputs):
        progress(PreparationProgress(step=str(path), finished=True, held_out=True))
    provenance = collect_provenance(sys.argv, seeds={"packing and sampling": config.seed})
    token_bytes = 2 if tokenizer.vocab_size <= 1 << 16 else 4
    parts_folder = resumable_path(out)
    settings = _settings(config, tokenizer)
    if (out / MANIFEST).is_file():  # an earlier attempt was killed before its cleanup
        remove_parts(parts_folder)
    with publishing(out, kept="finished input files are kept for the next attempt") as work:
        parts = PartsFolder(parts_folder, settings, token_bytes)
        try:
            _check_usable_share(config, _tokenise_files(files, maker, parts, progress))
        finally:
            parts.tidy()
        corpus = Corpus([parts.open(file.identity) for file in files])
        description = _pack(config, corpus, tokenizer, work.folder, progress)
        (work.folder / TOKENIZER).write_text(tokenizer.serialized, encoding="utf-8")
        write_json(work.folder / DESCRIPTION, codec.to_json(description))
        parents = [
            Parent(role="input", location=file.location, identity=file.identity) for file in files
        ]
        work.finish(KIND, parents, provenance)
    remove_parts(parts_folder)
    return description


def _settings(config: DataConfig, tokenizer: DataTokenizer) -> dict[str, object]:
    """Return all settings that determine the token ids of a row."""
    settings = config.model_dump(mode="json", include={"rows", "chat", "sample_rows", "seed"})
    versions = {"code": amnesia_bench.__version__, "tokenizers": metadata.version("tokenizers")}
    if config.chat is not None:
        settings["templates"] = tokenizer.templates_sha256
    return {**settings, **versions, "tokenizer": tokenizer.sha256}


def _tokenise_files(
    files: Sequence[InputFile], maker: DocumentMaker, parts: PartsFolder, report: Report
) -> list[PartSummary]:
    summaries = []
    for number, file in enumerate(files, 1):
        progress = PreparationProgress(step=f"{number}/{len(files)} {Path(file.location).name}")
        summary = parts.finished(file.identity)
        progress = replace(progress, reused=summary is not None)
        if summary is None:
            summary = _tokenise(file, maker, parts, progress, report)
        summaries.append(summary)
        report(replace(progress, done=summary.documents, tokens=summary.tokens, finished=True))
    return summaries


def _tokenise(
    file: InputFile,
    maker: DocumentMaker,
    parts: PartsFolder,
    progress: PreparationProgress,
    report: Report,
) -> PartSummary:
    """Tokenise one input file, write its part, and return the summary."""
    rows = _Rows(file, maker)
    writer = parts.writer(file.identity)
    pending: deque[Future[tuple[TokenizedDocuments, int]]] = deque()

    def write_next() -> None:
        documents, untrained = pending.popleft().result()
        writer.add(documents)
        if untrained:
            rows.dropped[Reason.UNTRAINED] += untrained
        report(replace(progress, done=writer.documents, tokens=writer.tokens))

    # One thread is enough: it runs while Python reads rows, and the tokenizer is multithreaded.
    tokenising = ThreadPoolExecutor(1, thread_name_prefix="amnesia-tokenise")
    try:
        for batch in batches(rows.segments(), _BATCH_CHARACTERS):
            pending.append(tokenising.submit(maker.tokenise, batch))
            if len(pending) > _BATCHES_AHEAD:
                write_next()
        while pending:
            write_next()
        summary = PartSummary(
            rows=rows.read,
            dropped={reason.value: rows.dropped[reason] for reason in sorted(rows.dropped)},
            example=rows.example,
            way_out=rows.way_out,
            unread=tuple(sorted({printable(name)[:80] for name in rows.unread})),
            documents=writer.documents,
            tokens=writer.tokens,
        )
        writer.finish(summary)
    finally:
        tokenising.shutdown(cancel_futures=True)
        writer.close()
    return summary


class _Rows:
    """Reads the rows of one file, and counts the rows that were read and dropped."""

    def __init__(self, file: InputFile, maker: DocumentMaker) -> None:
        self._file = file
        self._maker = maker
        self.read = 0
        self.dropped: Counter[Reason] = Counter()
        self.example: str | None = None
        self.way_out: str | None = None
        self.unread: set[str] = set()

    def segments(self) -> Iterator[list[Segment]]:
        """Yield the segments of each usable row."""
        for number, row in read_rows(self._file, self._maker.columns, self.unread):
            if not self._maker.sampled(self._file.identity, number):
                continue
            where = f"{self._file.location}:{number}"
            self.read += 1
            try:
                segments = self._maker.segments(row, where)
                if not any(segment.trained for segment in segments):
                    raise DroppedRow(Reason.UNTRAINED)
                yield segments
            except DroppedRow as dropped:
                self._count(dropped, where)
            except RecursionError as error:
                raise UserError(f"{where}: nested too deeply") from error

    def _count(self, dropped: DroppedRow, where: str) -> None:
        self.dropped[dropped.reason] += 1
        # Rows of other domains are valid and excluded on purpose, so they are no problem to show.
        if dropped.reason is not Reason.OTHER_DOMAIN and self.example is None:
            self.example = printable(f"{where}: {dropped}")
            self.way_out = DROP_HINTS.get(dropped.reason)


def _check_usable_share(config: DataConfig, summaries: Sequence[PartSummary]) -> None:
    """Raise StageFailedError if no row is usable, or the share of unusable rows is too large."""
    rows = sum(summary.rows for summary in summaries)
    dropped = dropped_by_reason(summaries)
    bad = sum(n for reason, n in dropped.items() if reason != Reason.OTHER_DOMAIN)
    useless = not sum(summary.documents for summary in summaries)
    if not useless and bad <= config.max_dropped * rows:
        return
    reasons = ", ".join(f"{reason}: {n:,}" for reason, n in dropped.items()) or "no rows"
    first = next((summary for summary in summaries if summary.example is not None), None)
    example = f". The first is {first.example}" if first else ""
    hints = [first.way_out] if first and first.way_out else []
    if useless:
        if config.sample_rows < 1:
            hints.append(
                f"Only a sample of the rows was read: data.sample_rows={config.sample_rows}."
            )
        raise StageFailedError(
            f"none of {rows:,} rows yields a document ({reasons}){example}",
            hint="\n".join(hints) or None,
        )
    raise StageFailedError(
        f"{bad:,} of {rows:,} rows are unusable, more than max_dropped={config.max_dropped}: "
        f"{reasons}{example}",
        hint="\n".join([*hints, "To accept that many dropped rows: data.max_dropped=SHARE."]),
    )


def _sequences(config: DataConfig, corpus: Corpus) -> tuple[Iterator[Pieces], int, int]:
    """Return the sequences, the number of fragments, and the number of untrained fragments.

    Fragments are the pieces of documents that are longer than a sequence. Untrained ones are
    dropped.
    """
    capacity = config.sequence_tokens
    if config.over_length is None:
        return concatenate(corpus.lengths, capacity), 0, 0
    pieces = whole_documents(corpus.lengths, capacity, config.over_length)
    cut = np.flatnonzero(corpus.lengths[pieces.document] > capacity)
    untrained = [i for i in cut.tolist() if not corpus.piece(pieces, i)[1].any()]
    kept = pieces.take(np.delete(np.arange(len(pieces)), untrained))
    packed = (
        pack_single(kept) if config.pack == "single" else pack_best_fit(kept, capacity, config.seed)
    )
    return packed, len(cut), len(untrained)


def _pack(
    config: DataConfig, corpus: Corpus, tokenizer: DataTokenizer, folder: Path, report: Report
) -> DataDescription:
    """Write the sequences of a corpus and return the description of the store."""
    sequences, fragments, untrained = _sequences(config, corpus)
    writer = SequenceWriter(folder, config.sequence_tokens, corpus.token_bytes, tokenizer.pad_token)
    try:
        for sequence in sequences:
            writer.add(corpus.piece(sequence, i) for i in range(len(sequence)))
            if writer.num_sequences % _REPORT_SEQUENCES == 0:
                report(_packing_progress(writer))
    finally:
        writer.close()
    if not writer.num_sequences:
        raise StageFailedError(
            f"all {len(corpus.lengths):,} documents are longer than a sequence of "
            f"{config.sequence_tokens:,} tokens",
            hint="To keep the start of each: data.over_length=truncate",
        )
    end = replace(_packing_progress(writer), dropped=corpus.example, unread=corpus.unread)
    report(replace(end, finished=True))
    over = int((corpus.lengths > config.sequence_tokens).sum())
    return DataDescription(
        name=config.name,
        config=config.model_dump(mode="json"),
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        token_bytes=corpus.token_bytes,
        pad_token=tokenizer.pad_token,
        sequence_tokens=config.sequence_tokens,
        isolate_documents=config.isolate_documents,
        num_sequences=writer.num_sequences,
        sequences_per_shard=writer.sequences_per_shard,
        counts=DataCounts(
            rows=corpus.rows,
            dropped=corpus.dropped,
            documents=len(corpus.lengths),
            over_length=over,
            fragments=fragments,
            untrained_fragments=untrained,
            tokens=writer.num_sequences * config.sequence_tokens,
            trained_tokens=writer.trained_tokens,
            padding_tokens=writer.padding_tokens,
        ),
    )


def _packing_progress(writer: SequenceWriter) -> PreparationProgress:
    tokens = writer.num_sequences * writer.sequence_tokens
    return PreparationProgress(step="packing", done=writer.num_sequences, tokens=tokens)
