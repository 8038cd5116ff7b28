"""Read the rows of a JSON Lines file or of a JSON array one by one, in bounded memory.

This module does not read files of generated answers, whose lines have checksums.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.records import codec

Record = TypeVar("Record")

# Maximum size of a row. This is about four million tokens, for which a tokenizer needs 1 GB of
# memory.
MAX_ROW_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 16


def json_rows(stream: IO[bytes], location: str, hint: str) -> Iterator[tuple[int, object]]:
    """Yield (number, row) for each line of JSON Lines or each item of one array.

    Lines and items are numbered from 1; blank lines count, but are not yielded.

    Args:
        stream: a seekable file.
        location: the name of the file in error messages.
        hint: the hint of the error if the file is not JSON.

    Raises:
        UserError: a line or an item is not JSON in UTF-8, or is too large; the message contains its
            number.
    """
    head = stream.read(_CHUNK_BYTES)
    stream.seek(0)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(
            f"{location}: not UTF-8 but UTF-16", hint="iconv -f UTF-16 -t UTF-8 FILE > rows.jsonl"
        )
    is_array = head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    yield from (_array_items if is_array else _lines)(stream, location, hint)


def read_json_rows(path: Path, hint: str) -> Iterator[tuple[int, object]]:
    """Yield (number, row) for each row of a local file; see `json_rows`.

    Raises:
        UserError: the file does not exist or is a folder, or a row is not JSON.
        MissingEnvironmentError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            yield from json_rows(stream, str(path), hint)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file", hint=hint) from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder, but a file is needed", hint=hint) from error
    except OSError as error:
        raise MissingEnvironmentError(f"{path}: cannot be read ({error.strerror})") from error


def read_records(record: type[Record], path: Path, hint: str) -> Iterator[Record]:
    """Parse each row of a file as a record of this type; see `read_json_rows`.

    Raises:
        UserError: the file does not exist, or a row is not a record of this type.
        MissingEnvironmentError: the file cannot be read.
    """
    for number, row in read_json_rows(path, hint):
        yield codec.from_json(record, row, f"{path}:{number}")


def too_large(where: str) -> UserError:
    """Return the error for a row of more than MAX_ROW_BYTES; `where` locates the row."""
    return UserError(
        f"{where}: a row of more than {MAX_ROW_BYTES >> 20} MiB",
        hint="Split such rows, or remove them.",
    )


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object from its pairs, and refuse duplicate keys; use as `object_pairs_hook`.

    JSON does not define the meaning of duplicate keys.

    Raises:
        ValueError: a key occurs twice.
    """
    fields = dict(pairs)
    if len(fields) < len(pairs):
        duplicate, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {duplicate!r:.80} occurs twice in one object")
    return fields


def _not_json(where: str, error: Exception, hint: str) -> UserError:
    if isinstance(error, UnicodeDecodeError):
        return UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})")
    return UserError(f"{where}: not JSON ({error})", hint=hint)


def _lines(stream: IO[bytes], location: str, hint: str) -> Iterator[tuple[int, object]]:
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        where = f"{location}:{number}"
        if len(line) > MAX_ROW_BYTES:
            raise too_large(where)
        if line.strip():
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                row = json.loads(text, object_pairs_hook=unique_keys)
            except (ValueError, RecursionError) as error:
                raise _not_json(where, error, hint) from error
            yield number, row


def _array_items(stream: IO[bytes], location: str, hint: str) -> Iterator[tuple[int, object]]:
    array = _Array(stream, location, hint)
    array.skip("[")
    number = 0
    while array.next_character() != "]":
        if number:
            array.skip(",")
        number += 1
        yield number, array.item(f"{location}:{number}")
    array.skip("]")
    if array.next_character():
        raise UserError(f"{location}: the array is followed by more text", hint=hint)


class _Array:
    """Parses a JSON array item by item, with a buffer that is little larger than one item."""

    def __init__(self, stream: IO[bytes], location: str, hint: str) -> None:
        self._stream = stream
        self._decode_utf8 = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._location = location
        self._hint = hint
        self._decoder = json.JSONDecoder(object_pairs_hook=unique_keys)
        self._buffer = ""
        self._at = 0

    def next_character(self) -> str:
        """Return the next non-blank character without consuming it; "" at the end of the file."""
        while True:
            while self._at < len(self._buffer):
                if self._buffer[self._at] not in " \t\r\n":
                    return self._buffer[self._at]
                self._at += 1
            if not self._read_more(self._location):
                return ""

    def skip(self, character: str) -> None:
        """Consume the next non-blank character, which must be `character`."""
        actual = self.next_character()
        if actual != character:
            what = actual or "the end of the file"
            raise UserError(
                f"{self._location}: not JSON (expected {character}, found {what})", hint=self._hint
            )
        self._at += 1

    def item(self, where: str) -> object:
        """Parse and consume the next item."""
        self.next_character()
        while True:
            try:
                item, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:  # invalid, or only a part of it is in the buffer
                if len(self._buffer) - self._at > MAX_ROW_BYTES:
                    raise too_large(where) from None
                if not self._read_more(where):
                    raise _not_json(where, error, self._hint) from error
            except (ValueError, RecursionError) as error:
                raise _not_json(where, error, self._hint) from error
            else:
                if end - self._at > MAX_ROW_BYTES:
                    raise too_large(where)
                self._at = end
                return item

    def _read_more(self, where: str) -> bool:
        """Read at least as much text as is left in the buffer; return False at the end of the file.

        The buffer doubles each time, so a long item is parsed only a few times.
        """
        rest = self._buffer[self._at :]
        data = self._stream.read(max(_CHUNK_BYTES, len(rest)))
        try:
            more = self._decode_utf8(data, final=not data)
        except UnicodeDecodeError as error:
            raise _not_json(where, error, self._hint) from error
        self._buffer, self._at = rest + more, 0
        return bool(data)
