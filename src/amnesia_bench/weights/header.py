"""Parse the header of a safetensors file strictly, without reading the tensor data.

A safetensors file consists of 8 bytes with the length N of the header (little endian), N bytes of
JSON, and the data. Other modules copy and patch bytes at the offsets in the header. So a file is
refused if any offset could be wrong, that is, if the file is truncated, if there are gaps or
overlaps between tensors, or if the size of a tensor does not match its shape and dtype.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amnesia_bench.errors import UserError
from amnesia_bench.store.json_rows import unique_keys

# The limit of the format. It also prevents a damaged length from causing a huge allocation.
MAX_HEADER_BYTES = 100_000_000
LENGTH_BYTES = 8
# Limits far above the values of any model. Without them, one name could fill the screen, and the
# product of the numbers in one shape could take hours.
MAX_NAME_CHARACTERS = 1000
MAX_DIMENSIONS = 64
MAX_NUMBER = 1 << 63
LFS_POINTER = b"version "  # how a pointer file starts; read as a length, these bytes are 2e18

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """A tensor's name, dtype, shape, and absolute byte offsets [start, end) in its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.start

    @property
    def num_rows(self) -> int:
        """The length of the first dimension (a row is a slice along it); 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return self.num_bytes // self.num_rows if self.num_rows else 0


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of a safetensors file.

    `tensors` maps names to entries, in the order of the data. `data_start` is the offset of the
    first data byte, and `sha256` the hash of all bytes before it.
    """

    path: Path
    tensors: dict[str, TensorEntry]
    data_start: int
    sha256: str


def read_header(path: Path) -> Header:
    """Parse the header of a safetensors file and check every offset in it.

    Raises:
        UserError: the file is not a complete, well-formed safetensors file. The message names the
            file and, if the problem is in one tensor, that tensor.
    """
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        length_field = file.read(LENGTH_BYTES)
        if len(length_field) < LENGTH_BYTES:
            raise _damaged_file(
                path, f"is {file_bytes} bytes long, too short for a safetensors file"
            )
        if length_field == LFS_POINTER:
            raise UserError(
                f"{path}: is a Git LFS pointer, not the file itself.",
                hint=f"Fetch it: git -C {shlex.quote(str(path.parent))} lfs pull",
            )
        header_bytes = int.from_bytes(length_field, "little")
        data_start = LENGTH_BYTES + header_bytes
        if header_bytes > MAX_HEADER_BYTES or data_start > file_bytes:
            raise _damaged_file(
                path,
                f"declares a header of {header_bytes:,} bytes, but has only {file_bytes:,} bytes",
            )
        raw = file.read(header_bytes)
    try:
        fields = json.loads(raw.decode("utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise _damaged_file(path, f"has a header that is not valid JSON ({error})") from None
    if not isinstance(fields, dict):
        raise _damaged_file(path, "has a header that is not a JSON object")
    fields.pop("__metadata__", None)
    entries = [_entry(path, name, field, data_start) for name, field in fields.items()]
    entries.sort(key=lambda entry: (entry.start, entry.end))
    _check_coverage(path, entries, data_start, file_bytes)
    return Header(
        path=path,
        tensors={entry.name: entry for entry in entries},
        data_start=data_start,
        sha256=hashlib.sha256(length_field + raw).hexdigest(),
    )


def _entry(path: Path, name: str, field: Any, data_start: int) -> TensorEntry:
    if len(name) > MAX_NAME_CHARACTERS:
        raise _damaged_file(path, f"holds a tensor whose name has {len(name):,} characters")
    if name.encode("utf-8", "replace").decode("utf-8") != name:  # JSON can encode a lone surrogate
        raise _damaged_file(path, f"holds a tensor whose name is not valid Unicode, {name!r}")
    try:
        dtype, shape, (begin, end) = field["dtype"], tuple(field["shape"]), field["data_offsets"]
        numbers = (*shape, begin, end)
        if len(shape) > MAX_DIMENSIONS or not all(_is_count(n) for n in numbers):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        entry = reprlib.repr(field)
        raise _damaged_file(path, f"has a malformed entry for tensor {name!r}: {entry}") from None
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _damaged_file(path, f"holds tensor {name!r} of unknown dtype {reprlib.repr(dtype)}")
    needed_bytes = -(-math.prod(shape) * DTYPE_BITS[dtype] // 8)
    if end - begin != needed_bytes:
        raise _damaged_file(
            path,
            f"gives tensor {name!r} {end - begin:,} bytes (offsets {begin}..{end}), but {dtype} of "
            f"shape {list(shape)} needs {needed_bytes:,}",
        )
    return TensorEntry(
        name=name, dtype=dtype, shape=shape, start=data_start + begin, end=data_start + end
    )


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < MAX_NUMBER


def _check_coverage(
    path: Path, entries: list[TensorEntry], data_start: int, file_bytes: int
) -> None:
    """Check that the tensors cover the data exactly, without gap, overlap or missing end."""
    position = data_start
    for entry in entries:
        if entry.start != position:
            kind = "overlaps the tensor before it" if entry.start < position else "follows a gap"
            raise _damaged_file(path, f"has a wrong offset table: tensor {entry.name!r} {kind}")
        position = entry.end
    if position > file_bytes:
        raise _damaged_file(
            path, f"is truncated: the tensors need {position:,} bytes, the file has {file_bytes:,}"
        )
    if position < file_bytes:
        raise _damaged_file(path, f"has {file_bytes - position:,} bytes after its last tensor")


def _damaged_file(path: Path, problem: str) -> UserError:
    return UserError(f"{path}: {problem}.", hint="Download or save this checkpoint again.")
