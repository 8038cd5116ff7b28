"""Input files: which ones, what pins their contents, and their rows one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from amnesia_bench.config.data_schema import HubSource, SyntheticSource
from amnesia_bench.data.conversation import Row
from amnesia_bench.data.synthetic.generators import generate, sha256_of_rows
from amnesia_bench.errors import MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.store.hashing import sha256_of

_PARQUET_BATCH_ROWS = 256
_SUFFIXES = (".parquet", ".jsonl", ".json")


@dataclass(frozen=True)
class InputFile:
    """A file of rows. `identity` pins its contents: a hash, or a path at a commit of the hub.

    Where rows are made on the spot there is no file: `made_by` says how, and `identity` is that of
    the file that `amnesia data synthesize` would write.
    """

    location: str
    identity: str
    made_by: SyntheticSource | None = None

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine; else it is read from the hub as it is needed."""
        return "://" not in self.location


def local_files(paths: Sequence[Path]) -> list[InputFile]:
    """Return files of this machine, each with the hash of its contents; of a folder, all in it.

    Raises:
        UserError: a file is missing, empty, listed twice, or of a format that is not read.
    """
    files = [file for path in paths for file in ([path] if path.is_file() else _inside(path))]
    twice = [str(file) for file in dict.fromkeys(files) if files.count(file) > 1]
    if twice:
        raise UserError(f"--input names a file twice: {', '.join(twice)}")
    for file in files:
        _check_format(str(file))
        if file.stat().st_size == 0:
            raise UserError(f"{file}: is empty")
    with _reading("the input"):
        return [InputFile(str(file), f"sha256:{sha256_of(file)}") for file in files]


def hub_files(source: HubSource) -> list[InputFile]:
    """Return the files of a dataset at a commit, without reading them.

    Raises:
        UserError: no commit is given, or the hub does not know dataset, subset or split.
        MissingEnvironmentError: `datasets` is not installed, or the hub does not answer.
    """
    if source.revision is None:
        raise UserError(
            f"source.revision of {source.dataset} is null: without a commit the data could change",
            hint=f"`git ls-remote https://huggingface.co/datasets/{source.dataset} HEAD` prints "
            "it. Write it into the config, or add data.source.revision=COMMIT.\n"
            "To read files you already have: --input PATH",
        )
    try:
        from datasets import load_dataset_builder
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingEnvironmentError(
            f"reading from the hub needs datasets ({error})",
            hint='pip install "amnesia-bench[train]"',
        ) from error
    chosen = []
    for subset in source.subsets:
        try:
            builder = load_dataset_builder(source.dataset, subset, revision=source.revision)
        except (DatasetsError, ValueError) as error:
            raise UserError(f"{source.dataset}, subset {subset}: {error}") from error
        except OSError as error:
            raise MissingEnvironmentError(
                f"{source.dataset}: the hub cannot be asked ({error})",
                hint="Read files you already have: --input PATH",
            ) from error
        splits = builder.config.data_files or {}
        if source.split not in splits:
            raise UserError(
                f"{source.dataset}, subset {subset}: no split {source.split}; "
                f"it has {', '.join(map(str, splits))}"
            )
        files = sorted(str(name) for name in splits[source.split])[source.skip_files :]
        files = files[: source.take_files]
        if not files:
            raise UserError(
                f"{source.dataset}, subset {subset}: no files after the first {source.skip_files}"
            )
        chosen += files
    for name in chosen:
        _check_format(name)
    return [InputFile(name, f"commit:{source.revision}:{name}") for name in chosen]


def source_files(source: HubSource | SyntheticSource) -> list[InputFile]:
    """Return the files of a source, or what stands for them where its rows are made on the spot.

    Raises:
        UserError, MissingEnvironmentError: as `hub_files`.
    """
    if isinstance(source, HubSource):
        return hub_files(source)
    identity = f"sha256:{sha256_of_rows(source)}"
    return [InputFile(f"synthetic://{source.generator}", identity, made_by=source)]


def read_rows(file: InputFile, columns: Sequence[Sequence[str]]) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a file with their numbers, from 1; memory is that of a few rows.

    Args:
        file: which file.
        columns: fields the rows must have; each item lists names of which one must be there.

    Raises:
        UserError: a field is missing, or a line is not JSON; names file and line.
        StageFailedError: the file cannot be read to its end, or changes meanwhile.
    """
    if file.made_by is not None:
        yield from enumerate(generate(file.made_by), 1)
        return
    before = _state(file)
    with _reading(file.location), _opened(file) as stream:
        reader = _parquet_rows if file.location.endswith(".parquet") else _json_rows
        yield from reader(file, stream, columns)
    if _state(file) != before:
        raise StageFailedError(
            f"{file.location}: changed while it was read", hint="Run again when it is complete."
        )


def _inside(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such file")
    # Not .json: that is also how settings are written.
    found = sorted(path for end in ("parquet", "jsonl") for path in folder.rglob(f"*.{end}"))
    if not found:
        raise UserError(f"{folder}: holds no .parquet and no .jsonl files")
    return found


def _check_format(name: str) -> None:
    if not name.endswith(_SUFFIXES):
        raise UserError(f"{name}: not one of the formats that are read: {', '.join(_SUFFIXES)}")


def _state(file: InputFile) -> tuple[int, int] | None:
    if not file.is_local:
        return None
    with _reading(file.location):
        stat = Path(file.location).stat()
    return stat.st_size, stat.st_mtime_ns


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Keep failures to read apart from failures to write, which are OSErrors too."""
    try:
        yield
    except OSError as error:
        raise StageFailedError(
            f"{what}: cannot be read ({error})",
            hint="Run the same command again: files that are done are not read twice.",
        ) from error


def _opened(file: InputFile) -> IO[bytes]:
    if file.is_local:
        return Path(file.location).open("rb")
    import fsspec  # type: ignore[import-untyped]

    stream: IO[bytes] = fsspec.open(file.location, "rb").open()
    return stream


def _json_rows(
    file: InputFile, stream: IO[bytes], columns: Sequence[Sequence[str]]
) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        where = f"{file.location}:{number}"
        try:
            row = json.loads(line)
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error})", hint="One object a line.") from error
        if not isinstance(row, dict):
            raise UserError(f"{where}: a {type(row).__name__}, expected an object with fields")
        _check_columns(where, list(row), columns)
        yield number, row


def _parquet_rows(
    file: InputFile, stream: IO[bytes], columns: Sequence[Sequence[str]]
) -> Iterator[tuple[int, Row]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        table = parquet.ParquetFile(stream)
        there = list(table.schema_arrow.names)
        _check_columns(file.location, there, columns)
        wanted = [name for names in columns for name in names if name in there]
        for batch in table.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except UnicodeDecodeError as error:
        raise UserError(f"{file.location}: row {number + 1} or later: not UTF-8") from error
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{file.location}: not Parquet, or damaged ({error})") from error


def _check_columns(where: str, there: list[Any], columns: Sequence[Sequence[str]]) -> None:
    for names in columns:
        if not any(name in there for name in names):
            raise UserError(
                f"{where}: no field {' or '.join(names)}; it has {', '.join(map(str, there))}",
                hint="Did the dataset change? Take a config (amnesia data prepare CONFIG) or a "
                "revision that fits.",
            )
