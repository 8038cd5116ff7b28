"""Read the logs of inspect_ai: LOG.eval, which is a zip archive, and LOG.json.

Format: inspect_ai 0.3.285 (https://inspect.aisi.org.uk/eval-logs.html). An archive holds
`header.json` and `samples/ID_epoch_N.json`; a JSON log holds the header's keys and `samples`.
Samples are paired by their id. The epochs of a sample are answers to it, so its score is their
mean, which is also inspect_ai's default.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from amnesia_bench.comparison.score_log import (
    MetricKey,
    ScoredSample,
    ScoreLog,
    sample_score,
    series_of,
)
from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.store.files import read_json

ARCHIVES = "*.eval"

# The values of inspect_ai's `value_to_float`: correct, partially correct, incorrect, no answer.
_WORDS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
_ZSTANDARD = 93
_HEADER, _SAMPLES = "header.json", "samples/"
_LOCAL_HEADER = struct.Struct("<26xHH")
_DAMAGED = "Copy the log again, or evaluate the task again: inspect eval TASK"


def is_inspect_log(content: object) -> bool:
    """Return whether a parsed JSON file is a log of inspect_ai."""
    if not isinstance(content, dict) or not {"eval", "status", "version"} <= content.keys():
        return False
    return isinstance(content["eval"], dict)


def read_inspect_logs(files: Sequence[Path]) -> ScoreLog:
    """Read the logs of one evaluation, one file per task.

    Raises:
        UserError: two files are logs of the same task, a run is unfinished, a file is damaged, or
            a score is NaN.
        MissingEnvironmentError: an archive is compressed with Zstandard, and pyarrow is missing.
    """
    by_task: dict[str, Path] = {}
    samples: dict[MetricKey, list[ScoredSample]] = {}
    versions: dict[str, str] = {}
    skipped: dict[str, None] = {}
    for file in files:
        header, rows = _open(file)
        task, versions_of_task = _task(header, file)
        if task in by_task:
            raise UserError(
                f"two logs of the task {task}:\n  {by_task[task]}\n  {file}",
                hint="Pass the folder or the file of one run.",
            )
        by_task[task] = file
        versions[task] = versions_of_task
        for where, row in rows:
            for metric, scorer, value in _values(row, where):
                score = sample_score(metric, _number(value), where)
                if score is None:
                    kind = type(value).__name__
                    skipped[f"{task} {metric}: is a {kind} and not a score per sample"] = None
                    continue
                key = MetricKey(task, metric, scorer)
                samples.setdefault(key, []).append(_sample(row, score))
    return ScoreLog(
        format="inspect_ai",
        files=tuple(by_task.values()),
        # inspect_ai does not log whether a higher score is better.
        series={key: series_of(own, higher_is_better=True) for key, own in samples.items()},
        versions=versions,
        skipped=tuple(skipped),
    )


def _open(file: Path) -> tuple[Mapping[str, Any], Iterable[tuple[str, Mapping[str, Any]]]]:
    """Return the header of a log, and its samples with their names for error messages."""
    if file.suffix != ".eval":
        content = read_json(file)
        rows = content.get("samples") or []
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{file}: its samples are not a list of objects", hint=_DAMAGED)
        return content, ((f"{file}, sample {i}", row) for i, row in enumerate(rows))
    header = next(_members(file, _HEADER), None)
    if header is None:
        raise UserError(f"{file}: has no {_HEADER}, so its run is unfinished", hint=_DAMAGED)
    return header[1], _members(file, _SAMPLES)


def _members(file: Path, prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and the content of the members whose names begin so, one at a time."""
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.filename.startswith(prefix):
                    yield f"{file}: {info.filename}", _read_member(archive, info, file)
    except zipfile.BadZipFile as error:
        raise UserError(f"{file}: not a complete log ({error})", hint=_DAMAGED) from error


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: Path) -> Mapping[str, Any]:
    compressed = info.compress_type == _ZSTANDARD
    try:
        data = _decompressed(file, info) if compressed else archive.read(info)
    except (zlib.error, EOFError) as error:
        raise UserError(f"{file}: {info.filename} is damaged ({error})", hint=_DAMAGED) from error
    try:
        content = json.loads(data)
    except ValueError as error:
        raise UserError(f"{file}: {info.filename} is not JSON ({error})", hint=_DAMAGED) from error
    if not isinstance(content, dict):
        raise UserError(f"{file}: {info.filename} is not an object", hint=_DAMAGED)
    return content


def _decompressed(file: Path, info: zipfile.ZipInfo) -> bytes:
    """Return the content of a member that Python's zipfile cannot decompress before 3.14."""
    try:
        arrow = import_module("pyarrow")
    except ImportError as error:
        raise MissingEnvironmentError(
            f"{file}: is compressed with Zstandard, and pyarrow is not installed",
            hint='pip install "amnesia-bench[eval]", or convert the log: inspect log convert --to '
            f"json {file} --output-dir DIR",
        ) from error
    with file.open("rb") as stream:
        stream.seek(info.header_offset)
        name_bytes, extra_bytes = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
        stream.seek(name_bytes + extra_bytes, 1)
        compressed = stream.read(info.compress_size)
    try:
        data = bytes(arrow.decompress(compressed, info.file_size, codec="zstd", asbytes=True))
    except OSError as error:
        raise UserError(f"{file}: {info.filename} is damaged ({error})", hint=_DAMAGED) from error
    if zlib.crc32(data) != info.CRC:
        raise UserError(f"{file}: {info.filename} is damaged (its CRC differs)", hint=_DAMAGED)
    return data


def _task(header: Mapping[str, Any], file: Path) -> tuple[str, str]:
    """Return the name and the version of a finished log's task."""
    if not is_inspect_log(header):
        raise UserError(f"{file}: not a log of inspect_ai", hint=_DAMAGED)
    if header["status"] != "success":
        raise UserError(
            f"{file}: the run has the status {header['status']!r}, so samples may be missing",
            hint=f"Finish it: inspect eval-retry {file}",
        )
    return str(header["eval"].get("task")), str(header["eval"].get("task_version"))


def _values(row: Mapping[str, Any], where: str) -> Iterator[tuple[str, str, object]]:
    """Yield the metric, the scorer and the value of each score of a sample."""
    scores = row.get("scores") or {}
    if not isinstance(scores, dict):
        raise UserError(f"{where}: its scores are not an object", hint=_DAMAGED)
    for scorer, score in scores.items():
        value = score.get("value") if isinstance(score, dict) else None
        if isinstance(value, dict):
            for metric, part in value.items():
                yield str(metric), scorer, part
        else:
            yield scorer, scorer, value


def _number(value: object) -> object:
    """Return the number for which a text stands, as `value_to_float` does; else the value itself.

    Graders that are models often write a number as a text.
    """
    if not isinstance(value, str):
        return value
    if value in _WORDS or value.lower() in _WORDS:
        return _WORDS.get(value, _WORDS.get(value.lower()))
    try:
        return float(value)
    except ValueError:
        return value


def _sample(row: Mapping[str, Any], score: float) -> ScoredSample:
    # A number and a text with the same digits are different ids.
    identity = json.dumps(row.get("id"))
    asked = json.dumps([row.get("input"), row.get("target")], sort_keys=True)
    return ScoredSample(
        key=identity,
        name=f"sample {identity}",
        prompt=hashlib.sha256(asked.encode()).hexdigest(),
        score=score,
    )
