"""Recognise which tool wrote a folder or file, and read its scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from amnesia_bench.comparison.inspect_logs import ARCHIVES, is_inspect_log, read_inspect_logs
from amnesia_bench.comparison.lm_eval_logs import (
    LOG_SAMPLES,
    RESULTS,
    SAMPLE_LOGS,
    read_lm_eval_logs,
)
from amnesia_bench.comparison.own_scores import read_own_scores
from amnesia_bench.comparison.score_log import ScoreLog
from amnesia_bench.errors import UserError
from amnesia_bench.reporting.sources import ANSWERS, CELL_FILES
from amnesia_bench.store.files import read_json

# The program that decompresses files with a suffix.
_COMPRESSED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
_EXPECTED = (
    f"Pass a folder that contains lm-eval's {SAMPLE_LOGS} ({LOG_SAMPLES}), inspect_ai's logs, or "
    "cells that `amnesia eval` or `amnesia score` wrote."
)


def open_score_log(path: Path) -> ScoreLog:
    """Read the scores of one evaluation from a folder or file of any known format.

    Raises:
        UserError: the path does not exist, contains no scores per sample, or contains those of
            several tools or of several runs.
        MissingEnvironmentError: a file cannot be read.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    log = _read_file(path) if path.is_file() else _read_folder(path)
    if not log.series:
        raise UserError(
            f"{path}: has no score per sample", hint="\n".join(log.skipped) or _EXPECTED
        )
    return log


def _read_file(path: Path) -> ScoreLog:
    if path.suffix == ".jsonl":
        return read_lm_eval_logs([path])
    if path.suffix == ".eval":
        return read_inspect_logs([path])
    if path.suffix in _COMPRESSED:
        raise _compressed(path)
    if path.suffix == ".json":
        content = read_json(path)
        if is_inspect_log(content):
            return read_inspect_logs([path])
        if isinstance(content, dict) and "results" in content:
            raise _aggregated(path)
        if path.name in CELL_FILES:
            return read_own_scores(path.parent)
    raise UserError(f"{path}: not a log of samples", hint=_EXPECTED)


def _read_folder(folder: Path) -> ScoreLog:
    of_lm_eval = list(_visible(folder, SAMPLE_LOGS))
    of_inspect = list(_visible(folder, ARCHIVES))
    own = [path for name in CELL_FILES for path in _visible(folder, name)]
    if not (of_lm_eval or own):
        of_inspect += [p for p in _visible(folder, "*.json") if is_inspect_log(_json(p))]
    for suffix in _COMPRESSED:
        for path in _visible(folder, f"{SAMPLE_LOGS}{suffix}"):
            if path.with_suffix("") not in of_lm_eval:
                raise _compressed(path)
    kinds = [files for files in (of_lm_eval, of_inspect, own) if files]
    if len(kinds) > 1:
        names = ", ".join(str(files[0].relative_to(folder)) for files in kinds)
        raise UserError(
            f"{folder}: contains evaluations of several tools ({names})",
            hint="Pass the folder or the file of one of them.",
        )
    if of_lm_eval:
        return read_lm_eval_logs(of_lm_eval)
    if of_inspect:
        return read_inspect_logs(of_inspect)
    if own or any(_visible(folder, ANSWERS)):
        return read_own_scores(folder)
    if results := next(_visible(folder, RESULTS), None):
        raise _aggregated(results)
    raise UserError(f"{folder}: contains no logs of samples", hint=_EXPECTED)


def _compressed(path: Path) -> UserError:
    return UserError(
        f"{path}: is compressed", hint=f"Decompress it: {_COMPRESSED[path.suffix]} -dk {path}"
    )


def _aggregated(results: Path) -> UserError:
    return UserError(
        f"{results}: contains only the means over samples, which cannot be paired",
        hint=f"Evaluate again and log the samples: {LOG_SAMPLES}",
    )


def _visible(folder: Path, pattern: str) -> Iterator[Path]:
    for path in sorted(folder.rglob(pattern)):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path


def _json(path: Path) -> object:
    try:
        return read_json(path)
    except UserError:
        return None
