"""Rows of JSON lines and of one JSON array, one by one in bounded memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import IO

from amnesia_bench.data.conversation import Row
from amnesia_bench.data.row_forms import Columns
from amnesia_bench.data.values import names
from amnesia_bench.errors import UserError

# Of a row as it is written: some four million tokens, for which a tokenizer takes 1 GB.
MAX_ROW_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 16
_JSON_HINT = "One object a line, or one array of objects: jq -c . FILE > rows.jsonl"


def json_rows(stream: IO[bytes], location: str, columns: Columns) -> Iterator[tuple[int, Row]]:
    """Yield the objects of a file of JSON lines, or of one array, with their numbers from 1.

    Raises:
        UserError: a line or an item is not a JSON object, or lacks a column; names it.
    """
    head = stream.read(_CHUNK_BYTES)
    stream.seek(0)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(
            f"{location}: not UTF-8 but UTF-16", hint="iconv -f UTF-16 -t UTF-8 FILE > rows.jsonl"
        )
    is_array = head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
    read = _array_items if is_array else _lines
    for number, row in read(stream, location):
        where = f"{location}:{number}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: a {type(row).__name__}, expected an object with fields")
        require_columns(where, row, columns)
        yield number, row


def require_columns(where: str, there: Iterable[str], columns: Columns) -> None:
    """Refuse a row or a file without a column that every row must have.

    Raises:
        UserError: names what is missing and what is there.
    """
    for wanted in columns.required:
        if not any(name in there for name in wanted):
            raise UserError(
                f"{where}: no field {' or '.join(wanted)}; it has {names(dict.fromkeys(there))}",
                hint=columns.hint,
            )


def too_large(where: str) -> UserError:
    """Return the error for a row of more than MAX_ROW_BYTES."""
    return UserError(
        f"{where}: a row of more than {MAX_ROW_BYTES >> 20} MiB",
        hint="Split such rows, or leave them out.",
    )


def _not_json(where: str, error: Exception) -> UserError:
    if isinstance(error, UnicodeDecodeError):
        return UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})")
    return UserError(f"{where}: not JSON ({error})", hint=_JSON_HINT)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Build an object; JSON leaves open which of two equal keys counts."""
    row = dict(pairs)
    if len(row) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r:.80} stands twice in one object")
    return row


def _lines(stream: IO[bytes], location: str) -> Iterator[tuple[int, object]]:
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        where = f"{location}:{number}"
        if len(line) > MAX_ROW_BYTES:
            raise too_large(where)
        if line.strip():
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                row = json.loads(text, object_pairs_hook=_unique)
            except (ValueError, RecursionError) as error:
                raise _not_json(where, error) from error
            yield number, row


def _array_items(stream: IO[bytes], location: str) -> Iterator[tuple[int, object]]:
    array = _Array(stream, location)
    array.skip("[")
    number = 0
    while array.next_character() != "]":
        if number:
            array.skip(",")
        number += 1
        yield number, array.item(f"{location}:{number}")
    array.skip("]")
    if array.next_character():
        raise UserError(f"{location}: more text after the array", hint=_JSON_HINT)


class _Array:
    """The text of one JSON array, item by item; holds little more than one item."""

    def __init__(self, stream: IO[bytes], location: str) -> None:
        self._stream = stream
        self._text_of = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._location = location
        self._decoder = json.JSONDecoder(object_pairs_hook=_unique)
        self._buffer = ""
        self._at = 0

    def next_character(self) -> str:
        """Return the next character that is not blank, without passing it; "" at the end."""
        while True:
            while self._at < len(self._buffer):
                if self._buffer[self._at] not in " \t\r\n":
                    return self._buffer[self._at]
                self._at += 1
            if not self._read_more(self._location):
                return ""

    def skip(self, character: str) -> None:
        """Pass one character, which must come next."""
        found = self.next_character()
        if found != character:
            what = found or "the end of the file"
            raise UserError(
                f"{self._location}: not JSON (expected {character}, found {what})", hint=_JSON_HINT
            )
        self._at += 1

    def item(self, where: str) -> object:
        """Return the next item."""
        self.next_character()
        while True:
            try:
                item, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:  # wrong, or its end is not here yet
                if len(self._buffer) - self._at > MAX_ROW_BYTES:
                    raise too_large(where) from None
                if not self._read_more(where):
                    raise _not_json(where, error) from error
            except (ValueError, RecursionError) as error:
                raise _not_json(where, error) from error
            else:
                if end - self._at > MAX_ROW_BYTES:
                    raise too_large(where)
                self._at = end
                return item

    def _read_more(self, where: str) -> bool:
        """Read as much again as is left, so that an item is parsed only a few times."""
        rest = self._buffer[self._at :]
        data = self._stream.read(max(_CHUNK_BYTES, len(rest)))
        try:
            more = self._text_of(data, final=not data)
        except UnicodeDecodeError as error:
            raise _not_json(where, error) from error
        self._buffer, self._at = rest + more, 0
        return bool(data)
