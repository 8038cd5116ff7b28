"""Rows of Parquet, one by one in bounded memory.

A file of 2 kB can stand for gigabytes: a dictionary repeats one text, compression one byte. So
texts are read as indices into dictionaries, and rows are measured before Python builds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from amnesia_bench.data.conversation import Row
from amnesia_bench.data.json_rows import MAX_ROW_BYTES, check_columns, too_large
from amnesia_bench.data.row_forms import Columns
from amnesia_bench.errors import UserError

_BATCH_ROWS, _BATCH_BYTES = 256, 64 << 20
# Text compresses tenfold at best; a page, up to all of a column chunk, is decompressed at once.
_MAX_CHUNK_BYTES, _MAX_COMPRESSION = 1 << 30, 100
_MAX_CHUNK_VALUES = 100_000_000
_MAX_FIXED_BYTES = 1024


def parquet_rows(
    stream: IO[bytes], location: str, columns: Columns, unread: set[str]
) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a file with their numbers, from 1; a null is an absent field.

    Adds the columns that are not read to `unread`.

    Raises:
        UserError: a column is missing, a row is too large, or the file is damaged.
    """
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        table = parquet.ParquetFile(stream)
        schema = table.schema_arrow.names
        check_columns(location, schema, columns)
        wanted = [name for name in dict.fromkeys(columns.names) if name in schema]
        if twice := [name for name in wanted if schema.count(name) > 1]:
            raise UserError(f"{location}: two columns are named {twice[0]}")
        unread.update(set(schema) - set(wanted))
        leaves, batch_rows = _measured_leaves(table, location, wanted)
        table = parquet.ParquetFile(stream, read_dictionary=leaves)
        for batch in table.iter_batches(batch_size=batch_rows, columns=wanted):
            for row in _python_rows(batch, f"{location}:", number):
                number += 1
                yield number, row
    except UnicodeDecodeError as error:
        raise UserError(f"{location}: row {number + 1} or later: not UTF-8") from error
    except pyarrow.ArrowException as error:
        what = str(error)[:300]
        raise UserError(f"{location}: not Parquet, or damaged ({what})") from error


def _measured_leaves(table: Any, location: str, wanted: list[str]) -> tuple[list[str], int]:
    """Return which leaves hold texts, and how many rows to read at once.

    Raises:
        UserError: the metadata say that the file expands beyond what text does.
    """
    texts, largest_row = set(), 1.0
    for i in range(table.metadata.num_row_groups):
        group = table.metadata.row_group(i)
        group_bytes = 0
        for j in range(group.num_columns):
            chunk = group.column(j)
            path = chunk.path_in_schema
            if not any(path == name or path.startswith(f"{name}.") for name in wanted):
                continue
            size = chunk.total_uncompressed_size
            group_bytes += size
            expands = size > _MAX_CHUNK_BYTES and size > (
                _MAX_COMPRESSION * chunk.total_compressed_size
            )
            fixed = chunk.physical_type == "FIXED_LEN_BYTE_ARRAY"
            too_wide = fixed and table.schema.column(j).length > _MAX_FIXED_BYTES
            if expands or too_wide or chunk.num_values > _MAX_CHUNK_VALUES:
                raise UserError(
                    f"{location}: row group {i} of column {path} expands to "
                    f"{chunk.num_values:,} values of {size:,} bytes: no training text does"
                )
            if chunk.physical_type == "BYTE_ARRAY":
                texts.add(path)
        largest_row = max(largest_row, group_bytes / max(group.num_rows, 1))
    return sorted(texts), int(min(_BATCH_ROWS, max(1, _BATCH_BYTES // largest_row)))


def _python_rows(batch: Any, where: str, before: int) -> Iterator[Row]:
    """Yield the rows of a batch, built some at a time; `before` rows of the file came earlier."""
    sizes = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        sizes += _bytes(column)
    if (large := np.flatnonzero(sizes > MAX_ROW_BYTES)).size:
        raise too_large(f"{where}{before + int(large[0]) + 1}")
    cuts = np.flatnonzero(np.diff(np.cumsum(sizes) // _BATCH_BYTES)) + 1
    for begin, end in pairwise([0, *cuts.tolist(), batch.num_rows]):
        try:
            rows = batch.slice(begin, end - begin).to_pylist()
        except UnicodeDecodeError:
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            # A date of the year 300,000, a time zone that nobody knows.
            raise UserError(
                f"{where}{before + begin + 1} or later: a value that Python cannot hold "
                f"({error!s:.80})"
            ) from error
        yield from map(_without_nulls, rows)


def _without_nulls(value: Any) -> Any:
    """Leave out fields that are null: Parquet gives every object the fields of all others."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _bytes(array: Any) -> NDArray[np.int64]:
    """Return about how many bytes each element takes, with all that lies below it."""
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
    """Return the bytes of lists that hold the values between neighbouring offsets."""
    totals = np.concatenate((np.zeros(1, np.int64), np.cumsum(_bytes(values))))
    return totals[offsets[1:]] - totals[offsets[:-1]] + 8
