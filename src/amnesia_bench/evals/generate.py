"""Answers that outlive their process: one line per sample, on disk before the next is begun.

A folder holds `run.json` (what the answers depend on) and `generations.jsonl`. A run that was
killed, at whatever byte, goes on where it stopped; one that is through leaves the same bytes as
if it had never been disturbed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from amnesia_bench.errors import UserError
from amnesia_bench.evals.engines.protocol import Engine, Request
from amnesia_bench.records import codec
from amnesia_bench.records.evaluation import Generation, SampleKey
from amnesia_bench.store.files import (
    explain_write_error,
    make_folder,
    read_json,
    replace_text,
    sync_folder,
)
from amnesia_bench.store.lease import Lease, holding_lease

RUN = "run.json"
GENERATIONS = "generations.jsonl"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One line of `generations.jsonl`: the generation, and the hash of the request it answers."""

    request_sha256: str
    generation: Generation


def generate(
    engine: Engine, requests: Sequence[Request], folder: Path, *, identity: Mapping[str, str]
) -> tuple[Generation, ...]:
    """Answer every request that the folder does not hold an answer to.

    Args:
        engine: asked only for what is missing; not at all when nothing is.
        requests: with distinct keys. More of them than before may be asked for later.
        folder: made if missing; answers to other requests in it stay.
        identity: what the answers depend on besides requests and engine settings: the
            checkpoint, the prompts.

    Returns:
        One generation per request, in the order of the requests.

    Raises:
        UserError: the folder holds answers of another run, or is damaged.
        BusyError: another process is writing it.
        StageFailedError: the disk is full, or the lease was lost. What is done is kept.
        MissingEnvironmentError: the folder may not be written.
    """
    with _explaining_write_errors(folder):
        make_folder(folder.parent)
        with holding_lease(folder) as lease:
            make_folder(folder)
            _check_run(folder, {**engine.settings, **identity})
            path = folder / GENERATIONS
            _cut_torn_line(path)
            answers = _read(path)
            missing = _missing(requests, answers, folder)
            if missing:
                _append(path, engine, _Subset(requests, missing), answers, lease)
            _sort(path, answers)
    return tuple(answers[request.key].generation for request in requests)


def read_generations(folder: Path) -> tuple[Generation, ...]:
    """Return the answers in a folder that no process is writing, in the order of their keys.

    Raises:
        UserError: it holds none, or a damaged line.
    """
    path = folder / GENERATIONS
    if not path.is_file():
        raise UserError(f"{folder}: holds no {GENERATIONS}")
    answers = _read(path)
    return tuple(answers[key].generation for key in sorted(answers))


class _Subset(Sequence[Request]):
    """Some of the requests, each built only when it is asked for."""

    def __init__(self, requests: Sequence[Request], positions: Sequence[int]) -> None:
        self._requests = requests
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> Request: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Request]: ...

    def __getitem__(self, index: int | slice) -> Request | Sequence[Request]:
        if isinstance(index, slice):
            return _Subset(self._requests, self._positions[index])
        return self._requests[self._positions[index]]


@contextmanager
def _explaining_write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kept = "the answers so far are kept: the same command goes on with the rest"
        explained = explain_write_error(error, folder, kept)
        if explained is None:
            raise
        raise explained from error


def _check_run(folder: Path, run: Mapping[str, str]) -> None:
    """Write down what the answers depend on, or compare it with what was written."""
    path = folder / RUN
    if not path.exists():
        if (folder / GENERATIONS).exists():
            raise UserError(
                f"{folder}: holds answers, but no {RUN} that says whose they are",
                hint="Remove the folder, or choose another.",
            )
        replace_text(path, json.dumps(dict(sorted(run.items())), indent=2) + "\n")
        return
    before = read_json(path)
    if not isinstance(before, dict):
        raise UserError(f"{path}: not a JSON object")
    changes = [
        f"{name} was {before.get(name, 'absent')} and is now {run.get(name, 'absent')}"
        for name in sorted(before.keys() | run.keys())
        if before.get(name) != run.get(name)
    ]
    if changes:
        raise UserError(
            f"{folder}: holds the answers of another run: {'; '.join(changes)}",
            hint="Choose another folder, or remove this one.",
        )


def _request_sha256(request: Request) -> str:
    tokens = request.tokens.astype("<i4", copy=False)
    digest = hashlib.sha256(tokens.tobytes())
    drawn = {"sampling": codec.to_json(request.sampling), "seed": request.seed}
    digest.update(json.dumps(drawn, sort_keys=True).encode())
    return digest.hexdigest()


def _cut_torn_line(path: Path) -> None:
    """Cut off what follows the last line end: a process died while writing it."""
    if not path.exists():
        path.touch()
        sync_folder(path.parent)
        return
    with path.open("r+b") as file:
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        os.fsync(file.fileno())


def _read(path: Path) -> dict[SampleKey, Answer]:
    answers: dict[SampleKey, Answer] = {}
    with path.open(encoding="utf-8", newline="\n") as file:
        try:
            for number, line in enumerate(file, start=1):
                answer = codec.from_json(Answer, json.loads(line), f"{path}, line {number}")
                # Should a key ever come twice, the first counts: it may have been read before.
                answers.setdefault(answer.generation.key, answer)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}: damaged ({error})", hint="Remove the folder; it is made again."
            ) from error
    return answers


def _missing(
    requests: Sequence[Request], answers: Mapping[SampleKey, Answer], folder: Path
) -> list[int]:
    """Return the positions of the requests without an answer."""
    missing = []
    seen = set()
    for position, request in enumerate(requests):
        if request.key in seen:
            raise ValueError(f"two requests for {request.key}")
        seen.add(request.key)
        answer = answers.get(request.key)
        if answer is None:
            missing.append(position)
        elif answer.request_sha256 != _request_sha256(request):
            raise UserError(
                f"{folder}: holds an answer of {request.key.task}, document {request.key.doc}, "
                "to another prompt or with another sampling",
                hint="Choose another folder, or remove this one.",
            )
    return missing


def _append(
    path: Path,
    engine: Engine,
    requests: Sequence[Request],
    answers: dict[SampleKey, Answer],
    lease: Lease,
) -> None:
    hashes = {request.key: _request_sha256(request) for request in requests}
    with path.open("ab", buffering=0) as file:
        for generation in engine.generate(requests):
            answer = Answer(request_sha256=hashes.pop(generation.key), generation=generation)
            lease.check()
            _write_all(file.write, _line(answer))
            os.fsync(file.fileno())
            answers[generation.key] = answer
    if hashes:
        raise RuntimeError(f"the engine left {len(hashes)} requests unanswered: {min(hashes)} ...")


def _line(answer: Answer) -> bytes:
    # ASCII: a text may hold half a surrogate pair, which UTF-8 has no bytes for.
    return json.dumps(codec.to_json(answer), allow_nan=False).encode("ascii") + b"\n"


def _write_all(write: Callable[[bytes], int | None], data: bytes) -> None:
    while data:
        data = data[write(data) or 0 :]


def _sort(path: Path, answers: Mapping[SampleKey, Answer]) -> None:
    """Bring the lines into the order of their keys, so that how they came to be leaves no trace."""
    if list(answers) != sorted(answers):
        lines = b"".join(_line(answers[key]) for key in sorted(answers))
        replace_text(path, lines.decode("ascii"))
