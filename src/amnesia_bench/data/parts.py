"""Tokenised input files, kept until the store is published so that a killed preparation can resume.

Each input file becomes one part, in a hidden folder next to the future store. The name of a part is
a hash of everything that determines its contents (settings, tokenizer and input), so no existing
part is reused after a change of input or settings. The `.json` file of a part is written last: a
part without it is not finished. It contains the hashes of the part's other files and a hash of its
own record, so a part that was damaged between two attempts is recomputed. The lease of the store
(`publishing`) also protects the folder of parts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.data.documents import TokenizedDocuments
from amnesia_bench.data.packing import Pieces
from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.store.files import read_json, remove_files, sync_folder, write_json
from amnesia_bench.store.hashing import sha256_of

_LAYOUT = 2
_CONTENTS = ("tokens", "mask", "lengths")
_PART_FILE = re.compile(rf"[0-9a-f]{{32}}\.({'|'.join(_CONTENTS)}|fresh|json)")


@dataclass(frozen=True, kw_only=True)
class PartSummary:
    """The result of tokenising one input file.

    `example` is the location of the first dropped row with its reason, and `way_out` the hint for
    such rows. `unread` are the names of columns of the file that were not read.
    """

    rows: int
    dropped: Mapping[str, int]
    example: str | None
    way_out: str | None
    unread: tuple[str, ...]
    documents: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class _Record:
    """The `.json` record of a finished part: its summary, and the sha256 of each other file."""

    summary: PartSummary
    sha256: Mapping[str, str]


class Part:
    """A finished part: token ids [N] and loss mask bool [N] memory-mapped, lengths int64 [D]."""

    def __init__(self, prefix: Path, summary: PartSummary, dtype: np.dtype[np.unsignedinteger]):
        self.summary = summary
        self.lengths = np.fromfile(_file(prefix, "lengths"), np.int64)
        self.tokens: NDArray[np.unsignedinteger] = _memory_map(_file(prefix, "tokens"), dtype)
        self.mask: NDArray[np.bool_] = _memory_map(_file(prefix, "mask"), np.dtype(np.bool_))


class PartWriter:
    """Writes one part, which is not finished before `finish` returns."""

    def __init__(self, prefix: Path, dtype: np.dtype[np.unsignedinteger]) -> None:
        self._prefix = prefix
        self._dtype = dtype
        self._files: dict[str, IO[bytes]] = {}
        for kind in _CONTENTS:
            self._files[kind] = _file(prefix, kind).open("wb")
        self._digests = {kind: hashlib.sha256() for kind in _CONTENTS}
        self.documents = 0
        self.tokens = 0

    def add(self, documents: TokenizedDocuments) -> None:
        """Append tokenised documents."""
        tokens = documents.tokens.astype(self._dtype)
        for kind, values in zip(
            _CONTENTS, (tokens, documents.mask, documents.lengths), strict=True
        ):
            self._files[kind].write(values.data)
            self._digests[kind].update(values.data)
        self.documents += len(documents.lengths)
        self.tokens += len(documents.tokens)

    def finish(self, summary: PartSummary) -> None:
        """Flush the part to disk, then mark it as finished by writing its `.json` file."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        self.close()
        unpublished = _file(self._prefix, "fresh")
        unpublished.unlink(missing_ok=True)
        hashes = {kind: digest.hexdigest() for kind, digest in self._digests.items()}
        record = codec.to_json(_Record(summary=summary, sha256=hashes))
        write_json(unpublished, {"record": record, "sha256": _sha256_of_json(record)})
        unpublished.rename(_file(self._prefix, "json"))
        sync_folder(self._prefix.parent)

    def close(self) -> None:
        """Close the files. If the part is not finished, the next attempt overwrites them."""
        for file in self._files.values():
            file.close()


class PartsFolder:
    """The folder with the parts of one store, each named by a hash of settings and input."""

    def __init__(self, folder: Path, settings: Mapping[str, object], token_bytes: int) -> None:
        self.folder = folder
        self.dtype: np.dtype[np.unsignedinteger] = np.dtype(f"<u{token_bytes}")
        self._settings = json.dumps({"layout": _LAYOUT, **settings}, sort_keys=True)
        folder.mkdir(exist_ok=True)

    def finished(self, identity: str) -> PartSummary | None:
        """Return the summary of the part of an input file, or None without an intact part."""
        prefix = self._prefix(identity)
        record = self._record(prefix)
        if record is None:
            return None
        try:
            hashes = {kind: sha256_of(_file(prefix, kind)) for kind in _CONTENTS}
        except FileNotFoundError:
            return None
        return record.summary if hashes == record.sha256 else None

    def writer(self, identity: str) -> PartWriter:
        """Begin a new part for an input file, and return its writer."""
        return PartWriter(self._prefix(identity), self.dtype)

    def open(self, identity: str) -> Part:
        """Open the finished part of an input file.

        Raises:
            KeyError: the part is not finished.
        """
        record = self._record(self._prefix(identity))
        if record is None:
            raise KeyError(identity)
        return Part(self._prefix(identity), record.summary, self.dtype)

    def tidy(self) -> None:
        """Remove the unfinished parts, which no later attempt can use, and the folder if empty."""
        for path in list(self.folder.iterdir()):
            if _PART_FILE.fullmatch(path.name) and not path.with_suffix(".json").exists():
                path.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _record(self, prefix: Path) -> _Record | None:
        try:
            data = read_json(_file(prefix, "json"))
            if not isinstance(data, dict) or data.get("sha256") != _sha256_of_json(data["record"]):
                return None
            return codec.from_json(_Record, data["record"], str(prefix))
        except (UserError, KeyError):
            return None

    def _prefix(self, identity: str) -> Path:
        key = hashlib.sha256(f"{self._settings}\n{identity}".encode()).hexdigest()
        return self.folder / key[:32]


def remove_parts(folder: Path) -> None:
    """Remove all parts in a folder, and the folder if it is empty afterwards."""
    remove_files(folder, _PART_FILE)


class Corpus:
    """The concatenated documents of all parts."""

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts
        self.lengths = np.concatenate([part.lengths for part in parts])
        self._first = np.cumsum([0, *(len(part.lengths) for part in parts)])
        self._begins = np.concatenate([np.cumsum(part.lengths) - part.lengths for part in parts])
        self.token_bytes = parts[0].tokens.dtype.itemsize
        self.rows = sum(part.summary.rows for part in parts)
        self.dropped = dropped_by_reason([part.summary for part in parts])
        self.unread = unread_columns([part.summary for part in parts])
        self.example = next(filter(None, (part.summary.example for part in parts)), None)

    def piece(
        self, pieces: Pieces, i: int
    ) -> tuple[NDArray[np.unsignedinteger], NDArray[np.bool_]]:
        """Return the token ids and the loss mask of the `i`-th of `pieces`."""
        document = int(pieces.document[i])
        part = self._parts[int(np.searchsorted(self._first, document, side="right")) - 1]
        begin = int(self._begins[document] + pieces.start[i])
        end = begin + int(pieces.length[i])
        return part.tokens[begin:end], part.mask[begin:end]


def dropped_by_reason(summaries: Sequence[PartSummary]) -> dict[str, int]:
    """Return the total number of dropped rows for each reason, over all parts."""
    total: Counter[str] = Counter()
    for summary in summaries:
        total.update(summary.dropped)
    return dict(sorted(total.items()))


def unread_columns(summaries: Sequence[PartSummary]) -> tuple[str, ...]:
    """Return the names of all columns that were not read, in any part."""
    return tuple(sorted({name for summary in summaries for name in summary.unread}))


def _sha256_of_json(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _file(prefix: Path, kind: str) -> Path:
    return prefix.with_name(f"{prefix.name}.{kind}")


def _memory_map(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    if path.stat().st_size == 0:  # mmap fails on empty files
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r")
