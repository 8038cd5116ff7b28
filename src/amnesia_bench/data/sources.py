"""Select input files, identify their contents, and read their rows one by one."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from amnesia_bench.config.data_schema import FilesSource, HubSource, Source, SyntheticSource
from amnesia_bench.data.conversation import Row
from amnesia_bench.data.row_forms import Columns
from amnesia_bench.data.synthetic.generators import sha256_of_rows, synthetic_rows
from amnesia_bench.data.values import names
from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.hub.fetched import HubFiles, find_fetched
from amnesia_bench.hub.fetching import files_of_split
from amnesia_bench.hub.repository import hub_location
from amnesia_bench.store.hashing import sha256_of
from amnesia_bench.store.json_rows import json_rows
from amnesia_bench.store.parquet_rows import parquet_rows

_SUFFIXES = (".parquet", ".jsonl", ".json")
_JSON_HINT = "Expected one object per line, or one array of objects: jq -c . FILE > rows.jsonl"
# Unsupported formats by suffix, and the command that converts each.
_PACKED = {".gz": "gunzip -k {}", ".zst": "zstd -d {}", ".xz": "xz -dk {}", ".bz2": "bunzip2 -k {}",
           ".zip": "unzip {}"}  # fmt: skip
_BY_DATASETS = (
    'python -c "from datasets import load_dataset as l; '
    "l('{}', data_files='{}', split='train').to_json('rows.jsonl')\""
)
_TABLES = {".csv": "csv", ".tsv": "csv", ".arrow": "arrow"}
# Words that mark held-out data in the names of files and folders.
_HELD_OUT = frozenset({"test", "tests", "testing", "val", "valid", "validation", "dev", "eval",
                       "evaluation", "heldout", "holdout"})  # fmt: skip
_MAX_UNREAD = 100
_REMOTE_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class InputFile:
    """A file of rows.

    `identity` identifies its contents: a hash, or a path at a commit of the Hub. Generated rows
    have no file; `made_by` is then the source that describes their generator, and `identity` the
    hash of the file that `amnesia data synthesize` would write.
    """

    location: str
    identity: str
    made_by: SyntheticSource | None = None

    @property
    def is_local(self) -> bool:
        """Whether the file is on this machine; other files are streamed from the Hub."""
        return "://" not in self.location


def local_files(paths: Sequence[Path]) -> list[InputFile]:
    """Return local files, each with the hash of its contents.

    A folder is replaced by all Parquet and JSON-lines files in it, except hidden files and held-out
    splits (`held_out_files`).

    Raises:
        UserError: a file is missing, empty, listed twice, or in an unsupported format.
    """
    files = [file for path in paths for file in ([path] if path.is_file() else _inside(path))]
    duplicates = [str(file) for file in dict.fromkeys(files) if files.count(file) > 1]
    if duplicates:
        raise UserError(f"--input names a file twice: {', '.join(duplicates)}")
    for file in files:
        _check_format(str(file))
        if file.stat().st_size == 0:
            raise UserError(f"{file}: is empty")
    with _reading("the input"):
        return [InputFile(str(file), f"sha256:{sha256_of(file)}") for file in files]


def selection_of(source: HubSource) -> HubFiles:
    """Return the files of a Hub dataset that a source selects."""
    return HubFiles(
        repository=source.dataset,
        revision=source.revision,
        subsets=source.subsets,
        split=source.split,
        skip_files=source.skip_files,
        take_files=source.take_files,
    )


def hub_files(source: HubSource) -> list[InputFile]:
    """Return the files of a Hub dataset, without reading them.

    Files that `amnesia fetch` put into the store are read from there, at the commit at which they
    were fetched; otherwise, they are streamed from the Hub at the commit in the config.

    Raises:
        UserError: the config has no commit, or the Hub has no such dataset, subset or split.
        MissingEnvironmentError: `datasets` is not installed, or the Hub does not answer.
        StageFailedError: fetched files were changed.
    """
    selection = selection_of(source)
    if (fetched := find_fetched(selection)) is not None:
        commit = fetched.record.commit
        root = f"{hub_location(source.dataset, 'dataset')}@{commit}"
        files = [
            InputFile(str(fetched.folder / name), f"commit:{commit}:{root}/{name}")
            for name in fetched.record.names
        ]
    elif source.revision is None:
        raise UserError(
            f"source.revision of {source.dataset} is null: without a commit the data could change",
            hint="In an experiment, `amnesia fetch` chooses and records the newest commit.\n"
            f"`git ls-remote https://huggingface.co/datasets/{source.dataset} HEAD` prints "
            "the commit. Write it into the config, or add data.source.revision=COMMIT.\n"
            "To read files you already have: --input PATH",
        )
    else:
        names = files_of_split(selection)
        files = [InputFile(name, f"commit:{source.revision}:{name}") for name in names]
    for file in files:
        _check_format(file.location)
    return files


def source_files(source: Source) -> list[InputFile]:
    """Return the files of a source; for a synthetic source, one `InputFile` for its rows.

    Raises:
        UserError: the config is for the user's own files, which need `--input`.
        UserError, MissingEnvironmentError: as in `hub_files`.
    """
    if isinstance(source, FilesSource):
        raise UserError("this config reads your own files", hint="Pass them with --input PATH")
    if isinstance(source, HubSource):
        return hub_files(source)
    identity = f"sha256:{sha256_of_rows(source)}"
    return [InputFile(f"synthetic://{source.generator}", identity, made_by=source)]


def read_rows(file: InputFile, columns: Columns, unread: set[str]) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a file with their 1-based numbers; only a few rows are in memory at once.

    Args:
        file: the file to read.
        columns: the columns to read.
        unread: a set to which the names of other columns are added, until it has about a hundred.

    Raises:
        UserError: a column is missing, or a line is not JSON; the message names file and line.
        StageFailedError: the file cannot be read to its end, or changes while it is read.
    """
    if file.made_by is not None:
        yield from enumerate(synthetic_rows(file.made_by), 1)
        return
    state, known_names = _state(file), frozenset(columns.names)
    with _reading(file.location), _opened(file) as stream:
        if file.location.endswith(".parquet"):
            yield from _parquet_rows(stream, file.location, columns, unread)
        else:
            for number, row in _json_rows(stream, file.location, columns):
                if len(unread) < _MAX_UNREAD:
                    unread.update(row.keys() - known_names)
                yield number, row
    if _state(file) != state:
        raise StageFailedError(
            f"{file.location}: changed while it was read",
            hint="Run the command again once the file is complete.",
        )


def _json_rows(stream: IO[bytes], location: str, columns: Columns) -> Iterator[tuple[int, Row]]:
    for number, row in json_rows(stream, location, _JSON_HINT):
        where = f"{location}:{number}"
        if not isinstance(row, dict):
            raise UserError(
                f"{where}: is of type {type(row).__name__}, expected an object with fields"
            )
        _check_columns(where, row, columns)
        yield number, row


def _parquet_rows(
    stream: IO[bytes], location: str, columns: Columns, unread: set[str]
) -> Iterator[tuple[int, Row]]:
    def choose(schema: Sequence[str]) -> list[str]:
        _check_columns(location, schema, columns)
        selected = [name for name in dict.fromkeys(columns.names) if name in schema]
        unread.update(set(schema) - set(selected))
        return selected

    for number, row in parquet_rows(stream, location, choose):
        yield number, _without_nulls(row)


def _check_columns(where: str, fields: Iterable[str], columns: Columns) -> None:
    """Raise UserError if a row or a file lacks a required column."""
    for alternatives in columns.required:
        if not any(name in fields for name in alternatives):
            raise UserError(
                f"{where}: no field {' or '.join(alternatives)}; "
                f"it has {names(dict.fromkeys(fields))}",
                hint=columns.hint,
            )


def _without_nulls(value: Any) -> Any:
    """Remove null fields, since Parquet gives every object the fields of all objects."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def held_out_files(paths: Sequence[Path]) -> list[Path]:
    """Return the held-out files in folders, which `local_files` skips because of their names."""
    held_out = [file for folder in paths if folder.is_dir() for file in _readable(folder)[1]]
    return [file for file in held_out if file not in paths]


def _inside(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such file")
    files, held_out = _readable(folder)
    if files:
        return files
    raise UserError(
        f"{folder}: contains no .parquet or .jsonl files"
        + (f" except held-out ones ({held_out[0].relative_to(folder)})" if held_out else ""),
        hint="To read held-out files or JSON arrays (.json), pass each file by name: --input FILE",
    )


def _readable(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the training files of a folder, and its held-out files.

    Raises:
        UserError: the folder also contains data in unsupported formats.
    """
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in _parts(path, folder))
    ]
    for path in paths:
        if path.suffix in (*_PACKED, *_TABLES):
            _check_format(str(path))
    # .json files in a folder are skipped, since they may be settings instead of data.
    files = [path for path in paths if path.suffix in (".parquet", ".jsonl")]
    held_out = [path for path in files if _is_held_out(_parts(path, folder))]
    return [path for path in files if path not in held_out], held_out


def _parts(path: Path, folder: Path) -> tuple[str, ...]:
    return path.relative_to(folder).parts


def _is_held_out(parts: Sequence[str]) -> bool:
    words = {word for part in parts for word in re.split(r"[^a-z]+", part.lower())}
    return bool(words & _HELD_OUT) or {"held", "out"} <= words


def _check_format(name: str) -> None:
    suffix = Path(name).suffix
    if suffix in _SUFFIXES:
        return
    hint = None
    if suffix in _PACKED:
        hint = f"Unpack it: {_PACKED[suffix].format(name)}"
    elif suffix in _TABLES:
        hint = f"Convert it: {_BY_DATASETS.format(_TABLES[suffix], name)}"
    raise UserError(f"{name}: unsupported format; supported are {', '.join(_SUFFIXES)}", hint=hint)


def _state(file: InputFile) -> tuple[int, int] | None:
    if not file.is_local:
        return None
    with _reading(file.location):
        stat = Path(file.location).stat()
    return stat.st_size, stat.st_mtime_ns


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Turn an OSError into a StageFailedError that says that `source` cannot be read.

    Errors in writing the output are OSErrors too, and must not be confused with these.
    """
    try:
        yield
    except OSError as error:
        raise StageFailedError(
            f"{source}: cannot be read ({error})",
            hint="Run the same command again: it resumes after the finished files.",
        ) from error


def _opened(file: InputFile) -> IO[bytes]:
    if file.is_local:
        return Path(file.location).open("rb")
    import fsspec  # type: ignore[import-untyped]

    # Not every fsspec reader can limit the length of a line, but Python's buffered reader can.
    return io.BufferedReader(fsspec.open(file.location, "rb").open(), _REMOTE_BUFFER_BYTES)
