"""Read the rows of a Parquet file one by one, in bounded memory.

With dictionary encoding or compression, a file of 2 kB can expand to gigabytes. So texts are read
as indices into dictionaries, and the size of each row is computed before its Python objects are
built. A dictionary can contain all texts of a row group, so a row group that is too large is read
without dictionaries, a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.store.json_rows import MAX_ROW_BYTES, too_large

_INDEXED_BYTES = 256 << 20
# Arrow copies the dictionary for every batch, so few large batches are read from such columns.
_BATCH_BYTES, _FEW_ROWS = 64 << 20, 8
_PYTHON_BYTES = 16 << 20
# Limits on the expansion of a column chunk. Text compresses tenfold at best. A page, which can be
# as large as its column chunk, is decompressed at once.
_MAX_CHUNK_BYTES, _MAX_COMPRESSION = 256 << 20, 100
_MAX_CHUNK_VALUES = 100_000_000
_MAX_FIXED_BYTES = 1024


def parquet_rows(
    stream: IO[bytes], location: str, choose: Callable[[Sequence[str]], list[str]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row) for each row of a Parquet file, numbered from 1.

    Args:
        stream: a seekable file.
        location: the name of the file in error messages.
        choose: a function that selects the columns to read from the names of all columns.

    Raises:
        UserError: two columns share a name, a row or column is too large, or the file is damaged.
        MissingEnvironmentError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingEnvironmentError(
            f"{location}: reading Parquet needs pyarrow", hint="pip install pyarrow"
        ) from error

    number = 0
    try:
        table = parquet.ParquetFile(stream)
        schema = table.schema_arrow.names
        columns = choose(schema)
        if duplicates := [name for name in columns if schema.count(name) > 1]:
            raise UserError(f"{location}: two columns are named {duplicates[0]}")
        texts = [
            leaf.path
            for leaf in map(table.schema.column, range(len(table.schema)))
            if leaf.physical_type == "BYTE_ARRAY" and _is_below(leaf.path, columns)
        ]
        indexed = parquet.ParquetFile(stream, read_dictionary=texts)
        for i in range(table.num_row_groups):
            size = _expanded_bytes(table, i, location, columns)
            rows = table.metadata.row_group(i).num_rows
            fits = size <= _INDEXED_BYTES
            batch_rows = max(1, _BATCH_BYTES * rows // max(size, 1)) if fits else _FEW_ROWS
            group = (indexed if fits else table).iter_batches(batch_rows, [i], columns)
            for batch in group:
                for row in _python_rows(batch, f"{location}:", number):
                    number += 1
                    yield number, row
    except UnicodeDecodeError as error:
        raise UserError(f"{location}: row {number + 1} or later: not UTF-8") from error
    except pyarrow.ArrowException as error:
        what = str(error)[:300]
        raise UserError(f"{location}: not Parquet, or damaged ({what})") from error


def read_parquet_rows(
    path: Path, choose: Callable[[Sequence[str]], list[str]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row) for each row of a local file; see `parquet_rows`.

    Raises:
        UserError: the file does not exist, or is not Parquet.
        MissingEnvironmentError: the file cannot be read, or pyarrow is not installed.
    """
    try:
        with path.open("rb") as stream:
            yield from parquet_rows(stream, str(path), choose)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise MissingEnvironmentError(f"{path}: cannot be read ({error.strerror})") from error


def _expanded_bytes(table: Any, i: int, location: str, columns: list[str]) -> int:
    """Return the decompressed size in bytes of these columns in row group `i`.

    Raises:
        UserError: a column expands more than any text does.
    """
    group, total = table.metadata.row_group(i), 0
    for j in range(group.num_columns):
        chunk = group.column(j)
        if not _is_below(chunk.path_in_schema, columns):
            continue
        size, packed = chunk.total_uncompressed_size, chunk.total_compressed_size
        expands = size > _MAX_CHUNK_BYTES and size > _MAX_COMPRESSION * packed
        fixed = chunk.physical_type == "FIXED_LEN_BYTE_ARRAY"
        too_wide = fixed and table.schema.column(j).length > _MAX_FIXED_BYTES
        if expands or too_wide or chunk.num_values > _MAX_CHUNK_VALUES:
            raise UserError(
                f"{location}: row group {i} of column {chunk.path_in_schema} expands from "
                f"{packed:,} bytes to {chunk.num_values:,} values of {size:,} bytes, "
                "more than any training text"
            )
        total += size
    return total


def _is_below(path: str, columns: list[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in columns)


def _python_rows(batch: Any, where: str, before: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch as Python objects, built a few megabytes at a time.

    `before` is the number of rows that precede the batch in the file.

    Raises:
        UserError: a row is too large, or has a value that Python cannot represent.
    """
    sizes = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        sizes += _bytes(column)
    if (large := np.flatnonzero(sizes > MAX_ROW_BYTES)).size:
        raise too_large(f"{where}{before + int(large[0]) + 1}")
    cuts = np.flatnonzero(np.diff(np.cumsum(sizes) // _PYTHON_BYTES)) + 1
    for begin, end in pairwise([0, *cuts.tolist(), batch.num_rows]):
        try:
            rows = batch.slice(begin, end - begin).to_pylist()
        except UnicodeDecodeError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # Examples are a date in the year 300,000 and an unknown time zone.
            raise UserError(
                f"{where}{before + begin + 1} or later: a value that Python cannot represent "
                f"({error!s:.80})"
            ) from error
        yield from rows


def _bytes(array: Any) -> NDArray[np.int64]:
    """Return the approximate size of each element in bytes, including nested values."""
    import pyarrow
    from pyarrow import compute, types

    kind, length = array.type, len(array)
    if isinstance(array, pyarrow.ExtensionArray):
        return _bytes(array.storage)
    if types.is_dictionary(kind):
        indices = array.indices.fill_null(0).to_numpy(zero_copy_only=False)
        sizes = _bytes(array.dictionary)
        return sizes[indices] if len(sizes) else np.full(length, 8)
    if types.is_struct(kind):
        children = [_bytes(array.field(i)) for i in range(kind.num_fields)]
        total: NDArray[np.int64] = np.sum([np.full(length, 8), *children], axis=0, dtype=np.int64)
        return total
    if types.is_fixed_size_list(kind):
        return _sums(array.values, (array.offset + np.arange(length + 1)) * kind.list_size)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        return _sums(array.values, array.offsets.to_numpy())
    if any(is_kind(kind) for is_kind in (types.is_string, types.is_large_string, types.is_binary,
                                         types.is_large_binary)):  # fmt: skip
        lengths = compute.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        return np.asarray(lengths, np.int64) + 8
    return np.full(length, 8)


def _sums(values: Any, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each list's size in bytes; list i consists of values[offsets[i] : offsets[i + 1]]."""
    totals = np.concatenate((np.zeros(1, np.int64), np.cumsum(_bytes(values))))
    return totals[offsets[1:]] - totals[offsets[:-1]] + 8
