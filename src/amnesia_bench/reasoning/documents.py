"""Read a benchmark's problems from the hub at a pinned revision, or from a local file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from amnesia_bench.config.eval_schema import CodeEvalConfig, EvalConfig
from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.hub.fetched import HubFiles, find_fetched
from amnesia_bench.printable import counted
from amnesia_bench.reasoning.task import BenchmarkSource, ProblemSet, ReasoningTask, Row
from amnesia_bench.store.json_rows import read_json_rows
from amnesia_bench.store.parquet_rows import read_parquet_rows


def task_documents(
    task: ReasoningTask, data: Path | None, limit: int | None, window: int | None
) -> ProblemSet:
    """Read and check the problems of a task, or of its subset `window`; see `load_documents`.

    `window` is None for tasks without subsets.
    """
    if task.load is None or window is None:
        return load_documents(task.source, data, limit)
    return task.load(data, limit, window)


def window_of(config: EvalConfig) -> int | None:
    """Return the key of the config's problem subset, or None if its benchmark has no subsets."""
    return config.window if isinstance(config, CodeEvalConfig) else None


def task_files(task: ReasoningTask, config: EvalConfig) -> HubFiles:
    """Return the files on the hub with the problems of a task, or of its subset in `config`."""
    window = window_of(config)
    if task.files is None or window is None:
        return _files_of(task.source)
    return task.files(window)


def _files_of(source: BenchmarkSource) -> HubFiles:
    return HubFiles(repository=source.hub_id, revision=source.revision, subsets=(source.config,))


def load_documents(source: BenchmarkSource, data: Path | None, limit: int | None) -> ProblemSet:
    """Read and check a benchmark's problems.

    Args:
        source: the data set on the hub and the fields that its rows must have.
        data: a .jsonl or .parquet file with the same fields, which replaces the hub's data set.
        limit: return only the first N problems.

    Raises:
        UserError: a field is missing, empty or of the wrong type; the file cannot be read; or the
            hub returns an unexpected number of problems.
        MissingEnvironmentError: the hub cannot be reached.
    """
    origin = f"{source.hub_id}@{source.revision}" if data is None else str(data.resolve())
    rows = list(_from_hub(source) if data is None else _from_file(data, source))
    if not rows:
        raise UserError(f"{origin}: contains no problems")
    if data is None and len(rows) != source.rows:
        raise UserError(f"{origin}: has {counted(len(rows), 'problem')}, expected {source.rows:,}")
    checked = [_check_row(row, source, f"{origin}, problem {i}") for i, row in enumerate(rows)]
    used = checked[:limit]
    return ProblemSet(rows=tuple(used), origin=origin, sha256=_sha256(used), available=len(rows))


def chosen_problems(problems: ProblemSet, indices: Sequence[int]) -> ProblemSet:
    """Return some problems of a set, in the order of `indices`."""
    rows = tuple(problems.rows[i] for i in indices)
    return replace(problems, rows=rows, sha256=_sha256(rows))


def _from_hub(source: BenchmarkSource) -> Iterator[Any]:
    hint = (
        "Read the problems from a local file: --data FILE (.jsonl or .parquet). For an experiment: "
        "`amnesia fetch` on a machine with a network."
    )
    try:
        import datasets
    except ImportError as error:
        raise MissingEnvironmentError(
            "reading a benchmark from the hub needs the package datasets", hint=hint
        ) from error
    fetched = find_fetched(_files_of(source))
    try:
        if fetched is not None:
            yield from datasets.load_dataset(str(fetched.folder), source.config, split=source.split)
            return
        yield from datasets.load_dataset(
            source.hub_id, source.config, split=source.split, revision=source.revision
        )
    except (OSError, ValueError) as error:  # datasets and huggingface_hub raise only these
        raise MissingEnvironmentError(
            f"{source.hub_id}@{source.revision}: cannot be read from the hub "
            f"({str(error).partition(chr(10))[0]})",
            hint=hint,
        ) from error


def _from_file(path: Path, source: BenchmarkSource) -> Iterator[Any]:
    def choose(columns: Sequence[str]) -> list[str]:
        _check_fields(columns, source, str(path))
        return list(source.fields)

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix == ".parquet":
        rows: Iterator[tuple[int, Any]] = read_parquet_rows(path, choose)
    else:
        rows = read_json_rows(path, "Is the file complete?")
    yield from (row for _, row in rows)


def _check_fields(names: Iterable[str], source: BenchmarkSource, where: str) -> None:
    for name in source.fields:
        if name not in names:
            raise UserError(
                f"{where}: no field {name!r}; the fields are {', '.join(map(str, names))}",
                hint=f"Name the fields as in {source.hub_id}: {', '.join(source.fields)}.",
            )


def _check_row(row: Any, source: BenchmarkSource, where: str) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object")
    _check_fields(row, source, where)
    for name, kind in source.fields.items():
        value = row[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{where}: {name} is {value!r:.60}, expected {kind.__name__}")
        if value in ("", []) or (isinstance(value, str) and not value.strip()):
            raise UserError(f"{where}: {name} is empty")
    return {name: row[name] for name in source.fields}


def _sha256(rows: Sequence[Row]) -> str:
    canonical = json.dumps(rows, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
