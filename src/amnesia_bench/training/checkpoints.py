"""Save training checkpoints atomically, either synchronously or in the background.

    checkpoints/step-00000100/                 the files of PyTorch's distributed checkpoint
    checkpoints/step-00000100/complete.json    written last: a folder without it is damaged
    checkpoints/.step-00000100.tmp             a save in progress, or the remains of a killed one

Only trained tensors and the optimizer's moments are saved. A resumed run loads the frozen tensors
from the model checkpoint that the run started from.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from amnesia_bench.config.train_schema import Checkpoints
from amnesia_bench.errors import AmnesiaError, StageFailedError, UserError
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import FileEntry
from amnesia_bench.store.files import (
    explain_write_error,
    read_json,
    remove_files,
    sync_folder,
    write_json,
)
from amnesia_bench.store.hashing import file_entry, sha256_of
from amnesia_bench.tracking.metrics_file import FilePrefix
from amnesia_bench.training.metadata_reader import METADATA, TensorReader, read_metadata
from amnesia_bench.training.processes import Processes

COMPLETE = "complete.json"
_NAME = re.compile(r"step-([0-9]{8})")
_TEMPORARY = re.compile(r"\.step-[0-9]{8}\.tmp")
# The files that a complete or partial save writes. Other files are the user's and never removed.
_SAVE_FILE = re.compile(r"__[0-9]+_[0-9]+\.distcp|\.metadata(\.tmp)?|complete\.json")


@dataclass(frozen=True, kw_only=True)
class SavedStep:
    """The content of `complete.json`, from which `newest` detects damage.

    Attributes:
        step: the number of completed steps.
        files: the entry (size and hash) of every other file of the checkpoint.
        records: the prefixes of metrics.jsonl and speed.jsonl that end with this step, by file
            name.
    """

    step: int
    files: tuple[FileEntry, ...]
    records: Mapping[str, FilePrefix]


class CheckpointFolder:
    """Saves the tensors of a run to checkpoints, and loads them.

    Args:
        folder: an existing folder on a file system that all processes share.
        settings: the number of checkpoints to keep, and whether saving is asynchronous. The loop
            decides how often to save.
        processes: all processes of the run; every process must call each method.
        records: a function of the step, which the first process calls before the checkpoint of that
            step becomes valid. It waits until the metrics files are on disk, and returns their
            prefixes up to that step. If it raises, the checkpoint does not become valid.
    """

    def __init__(
        self,
        folder: Path,
        settings: Checkpoints,
        processes: Processes,
        records: Callable[[int], Mapping[str, FilePrefix]],
    ) -> None:
        self._folder, self._settings, self._processes = folder, settings, processes
        self._records = records
        self._pending: tuple[int, Future[Any]] | None = None
        self._hashes: Future[tuple[FileEntry, ...]] | None = None
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="amnesia-hash")

    def newest(self) -> SavedStep | None:
        """Remove incomplete checkpoints, and return the newest complete one, or None.

        Raises:
            UserError: the newest checkpoint is damaged.
        """
        return self._processes.on_first(self._find_newest)

    def load(self, step: int, state: dict[str, torch.Tensor]) -> None:
        """Load a checkpoint into the tensors of `state`, even if these are sharded differently.

        Raises:
            UserError: the tensors in the checkpoint do not match those of `state`.
        """
        folder = self._path(step)
        try:
            load(state, storage_reader=TensorReader(folder))
        except CheckpointException as error:
            causes = [str(failure) for failure, _ in error.failures.values()] or [str(error)]
            how = f"its tensors do not match those of this run ({causes[0]})"
            raise _damaged(folder, folder, how) from error

    def save(self, step: int, state: dict[str, torch.Tensor]) -> None:
        """Save a checkpoint.

        In an asynchronous save, this method returns once the tensors are copied; a background
        thread writes the copies.

        Raises:
            StageFailedError: this save or the previous one failed. The files of the failed save are
                removed, and earlier checkpoints are intact.
        """
        self.wait()
        temporary = self._temporary(step)
        self._processes.on_first(lambda: self._prepare(temporary))
        writer = _Writer(temporary, sync_files=True)
        group = self._processes.background
        if self._settings.asynchronous:
            future = async_save(state, storage_writer=writer, process_group=group)
            assert isinstance(future, Future)
            self._pending = step, future
            if self._processes.first:
                self._hashes = self._hasher.submit(_entries_once_written, future, temporary)
            return
        try:
            save(state, storage_writer=writer, process_group=group)
        except (CheckpointException, OSError) as error:
            self._give_up(step, error)
        self._processes.on_first(lambda: self._complete(step))

    def poll(self) -> bool:
        """Return whether `wait` could complete an asynchronous save without blocking."""
        written = self._pending is not None and self._pending[1].done()
        return written and (self._hashes is None or self._hashes.done())

    def wait(self) -> None:
        """Wait for the save in progress, if any, and complete it.

        Raises:
            StageFailedError: the save failed.
        """
        if self._pending is None:
            return
        (step, future), self._pending = self._pending, None
        failure: BaseException | None = future.exception()
        if failure is not None:
            self._give_up(step, failure)
        self._processes.on_first(lambda: self._complete(step))

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"

    def _temporary(self, step: int) -> Path:
        return self._folder / f".step-{step:08d}.tmp"

    def _prepare(self, temporary: Path) -> None:
        _remove(temporary)
        try:
            temporary.mkdir(exist_ok=True)
        except OSError as error:
            raise _explained(error, temporary) from error

    def _give_up(self, step: int, error: BaseException) -> None:
        temporary, self._hashes = self._temporary(step), None
        if self._processes.first:
            _remove(temporary)
        raise _explained(error, temporary) from error

    def _complete(self, step: int) -> None:
        temporary, final = self._temporary(step), self._path(step)
        hashes, self._hashes = self._hashes, None
        try:
            records = self._records(step)
            files = _entries(temporary) if hashes is None else hashes.result()
            saved = SavedStep(step=step, files=files, records=records)
            write_json(temporary / COMPLETE, codec.to_json(saved))
            sync_folder(temporary)
            temporary.rename(final)
            sync_folder(self._folder)
        except OSError as error:
            _remove(temporary)
            raise _explained(error, temporary) from error
        for old in self._steps()[: -self._settings.keep]:
            discarded = self._temporary(old)
            self._path(old).rename(discarded)
            _remove(discarded)
            if discarded.exists():  # the folder also contains files of the user
                discarded.rename(self._path(old))

    def _steps(self) -> list[int]:
        matches = (_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return sorted(int(match[1]) for match in matches if match is not None)

    def _find_newest(self) -> SavedStep | None:
        for leftover in _leftovers(self._folder):
            _remove(leftover)
        steps = self._steps()
        if not steps:
            return None
        folder = self._path(steps[-1])
        saved = _verified(folder)
        if saved.step != steps[-1]:
            raise _damaged(folder, folder / COMPLETE, f"belongs to step {saved.step}")
        read_metadata(folder)
        return saved


def remove_saves(folder: Path) -> None:
    """Remove the checkpoints of a run, and then their parent `folder` if it is empty."""
    complete = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    for path in complete + _leftovers(folder):
        _remove(path)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.glob(".step-*") if _TEMPORARY.fullmatch(path.name)]


def _remove(save: Path) -> None:
    remove_files(save, _SAVE_FILE)


def _verified(folder: Path) -> SavedStep:
    """Compare every file of a checkpoint with its hash, and return the content of complete.json."""
    path = folder / COMPLETE
    try:
        saved = codec.from_json(SavedStep, read_json(path), str(path))
    except UserError as error:
        raise UserError(error.what, hint=_remove_hint(folder)) from error
    expected = {entry.path: entry.sha256 for entry in saved.files}
    names = {path.name for path in folder.iterdir()} - {COMPLETE}
    written = {name for name in names if _SAVE_FILE.fullmatch(name)}
    for name in sorted(expected.keys() | written | {METADATA}):
        if name not in names:
            raise _damaged(folder, folder / name, "is missing")
        if name not in expected:
            raise _damaged(folder, path, f"does not list {name}")
        if sha256_of(folder / name) != expected[name]:
            raise _damaged(folder, folder / name, "has other contents")
    return saved


def _damaged(folder: Path, path: Path, how: str) -> UserError:
    return UserError(f"{path}: damaged since it was saved: {how}", hint=_remove_hint(folder))


def _remove_hint(folder: Path) -> str:
    return f"Remove {folder} to resume from the previous checkpoint."


def _entries(folder: Path) -> tuple[FileEntry, ...]:
    names = sorted(path.name for path in folder.iterdir() if _SAVE_FILE.fullmatch(path.name))
    return tuple(file_entry(folder, name, sha256=sha256_of(folder / name)) for name in names)


def _entries_once_written(save: Future[Any], folder: Path) -> tuple[FileEntry, ...]:
    """Wait for an asynchronous save, and return the entries of its files; none if it failed.

    It runs in a background thread, since hashing a large checkpoint takes minutes.
    """
    return () if save.exception() is not None else _entries(folder)


class _Writer(FileSystemWriter):
    """A writer that raises the OSError of a failed write, for which torch.save raises another."""

    def write_data(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().write_data(*args, **kwargs)
        except RuntimeError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            raise cause or error from error


def _explained(error: BaseException, temporary: Path) -> AmnesiaError:
    """Return the user-facing error for a failed save."""
    causes: list[BaseException] = [error]
    if isinstance(error, CheckpointException):
        causes = [failure for failure, _ in error.failures.values()]
    for cause in causes:
        if isinstance(cause, OSError) and (
            explained := explain_write_error(cause, temporary, "earlier checkpoints are kept")
        ):
            return explained
    return StageFailedError(f"{temporary}: the checkpoint could not be saved ({causes[0]!r})")
