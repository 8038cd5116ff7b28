"""Resumable generation: each answer is appended to a file, as one line, when it is finished.

A folder of answers contains `run.json`, which records everything that the answers depend on except
the requests, and `generations.jsonl`; both have checksums. A run that was killed at any byte
resumes where it stopped, and its final files are byte-identical to those of an uninterrupted run.
If the machine crashes, the answers since the last sync to the disk may be lost.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.inference.protocol import Engine, OnDemand, PromptRequest, UntrustedAnswersError
from amnesia_bench.records import codec
from amnesia_bench.records.evaluation import Generation, SampleKey
from amnesia_bench.store.files import (
    explaining_write_errors,
    make_folder,
    read_json,
    replace_text,
    sync_file,
    sync_folder,
)
from amnesia_bench.store.lease import Lease, holding_lease
from amnesia_bench.store.sealed_json import is_sealed, seal, sealed_text, unseal, unsealed

RUN = "run.json"
GENERATIONS = "generations.jsonl"
_SYNC_SECONDS = 1.0  # a sync takes milliseconds, as does an answer of a small model
_KEPT = "the answers so far are kept: run the same command again to resume"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One line of `generations.jsonl`: an answer, and the hash of the request that it answers."""

    request_sha256: str
    generation: Generation


def generate_missing(
    engine: Engine, requests: Sequence[PromptRequest], folder: Path, *, identity: Mapping[str, str]
) -> tuple[Generation, ...]:
    """Generate and store the missing answers, and return the answers to all requests.

    Args:
        engine: answers the requests that have no answer yet; not called if there are none.
        requests: requests with distinct keys. A later call may pass additional requests.
        folder: folder of the answers, created if missing. Its answers to other requests are kept.
        identity: the identities, by name, of the checkpoint and the prompts. The answers depend on
            them, on the requests and on the engine settings.

    Returns:
        One generation per request, in the order of the requests.

    Raises:
        UserError: the folder contains answers of another run, or is damaged.
        BusyError: another process is writing to the folder.
        StageFailedError: the disk is full, or the lease was lost. Finished answers are kept,
            unless the engine raised `UntrustedAnswersError`.
        MissingEnvironmentError: the folder is not writable.
    """
    with explaining_write_errors(folder, _KEPT):
        make_folder(folder.parent)
        with holding_lease(folder) as lease:
            make_folder(folder)
            _check_run(folder, {**engine.settings, **identity})
            path = folder / GENERATIONS
            answers = _resume(path)
            hashes = _request_hashes(requests, answers, folder)
            missing = [i for i, key in enumerate(hashes) if key not in answers]
            if missing:
                new_answers = engine.generate(OnDemand(requests.__getitem__, missing))
                try:
                    _append(path, new_answers, hashes, answers, lease)
                except UntrustedAnswersError:
                    # Earlier answers cannot be trusted either: the next run must not reuse them.
                    path.unlink()
                    (folder / RUN).unlink()
                    raise
            if len(answers.keys() & hashes.keys()) < len(hashes):
                raise RuntimeError(f"the engine answered only {len(answers)} of {len(hashes)}")
            _sort(path, answers)
    return tuple(answers[key].generation for key in hashes)


def read_generations(folder: Path) -> tuple[Generation, ...]:
    """Return the answers in a folder, sorted by key; no process may be writing to the folder.

    Raises:
        UserError: the folder contains no answers, or a line of them is damaged.
    """
    answers = read_answers(folder)
    return tuple(answers[key].generation for key in sorted(answers))


def read_answers(folder: Path) -> dict[SampleKey, Answer]:
    """Return the answers in a folder by key, with the hashes of their requests.

    Raises:
        UserError: see `read_generations`.
    """
    path = folder / GENERATIONS
    if not path.is_file():
        raise UserError(f"{folder}: holds no {GENERATIONS}")
    answers, _ = _read(path, sealed=read_run_record(folder).sealed)
    return answers


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The contents of `run.json`.

    `depends` maps names to values: everything that the answers depend on except the requests.
    `sealed` is true if the lines of `generations.jsonl` have checksums.
    """

    depends: Mapping[str, str]
    sealed: bool


def read_run_record(folder: Path) -> RunRecord:
    """Read the run record in a folder of answers.

    Raises:
        UserError: the record is damaged or missing (`generate` did not write the folder).
    """
    path = folder / RUN
    content = read_json(path)
    depends = unsealed(content, str(path), "Remove the folder, and generate its answers again.")
    if not isinstance(depends, dict) or not all(isinstance(v, str) for v in depends.values()):
        raise UserError(f"{path}: not a JSON object of strings")
    return RunRecord(depends=depends, sealed=is_sealed(content))


def _check_run(folder: Path, run: Mapping[str, str]) -> None:
    """Write the run record if it is missing; otherwise check that it matches this run."""
    path = folder / RUN
    if not path.exists():
        if (folder / GENERATIONS).exists():
            raise UserError(
                f"{folder}: holds answers but no {RUN}, so their checkpoint is unknown",
                hint="Remove the folder, or choose another.",
            )
        replace_text(path, sealed_text(dict(sorted(run.items()))))
        return
    record = read_run_record(folder)
    recorded = record.depends
    if not record.sealed:
        raise UserError(
            f"{folder}: its answers have no checksums: an older version wrote them, or {RUN} is "
            "damaged",
            hint="`amnesia score` still reads them. To generate more, choose another folder.",
        )
    changes = [
        f"{name} was {recorded.get(name, 'absent')} and is now {run.get(name, 'absent')}"
        for name in sorted(recorded.keys() | run.keys())
        if recorded.get(name) != run.get(name)
    ]
    if changes:
        raise UserError(
            f"{folder}: holds the answers of another run: {'; '.join(changes)}",
            hint="Choose another folder, or remove this one.",
        )


def request_sha256(request: PromptRequest) -> str:
    """Return a hash of a request's tokens, sampling parameters and seed."""
    tokens = request.tokens.astype("<i4", copy=False)
    digest = hashlib.sha256(tokens.tobytes())
    sampling = {"sampling": codec.to_json(request.sampling), "seed": request.seed}
    digest.update(json.dumps(sampling, sort_keys=True).encode())
    return digest.hexdigest()


def _resume(path: Path) -> dict[SampleKey, Answer]:
    """Return the existing answers; remove an incomplete last line from the file."""
    if not path.exists():
        path.touch()
        sync_folder(path.parent)
    answers, complete_bytes = _read(path, sealed=True)
    if complete_bytes < path.stat().st_size:
        os.truncate(path, complete_bytes)
    sync_file(path)  # the process that wrote it may have been killed before its sync
    return answers


def _read(path: Path, *, sealed: bool) -> tuple[dict[SampleKey, Answer], int]:
    """Return the answers in the order of the file, and the size of its complete lines in bytes.

    Only the last line may be incomplete, without a line break: its process died while writing it.
    """
    answers: dict[SampleKey, Answer] = {}
    complete_bytes = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            complete_bytes += len(line)
            try:
                parsed = unseal(line[:-1].decode("ascii")) if sealed else json.loads(line)
                answer = codec.from_json(Answer, parsed, f"{path}, line {number}")
            except (ValueError, RecursionError, UserError) as error:
                raise UserError(
                    f"{path}: line {number} is damaged ({error})",
                    hint="Remove this line, or the folder: missing answers are generated again.",
                ) from error
            # If a key occurs twice, keep the first answer, which an earlier run may have returned.
            answers.setdefault(answer.generation.key, answer)
    return answers, complete_bytes


def _request_hashes(
    requests: Sequence[PromptRequest], answers: Mapping[SampleKey, Answer], folder: Path
) -> dict[SampleKey, str]:
    """Map each request's key to its hash; raise an error if an existing answer's hash differs."""
    hashes: dict[SampleKey, str] = {}
    for request in requests:
        key = request.key
        if key in hashes:
            raise ValueError(f"two requests for {key}")
        hashes[key] = request_sha256(request)
        if key in answers and answers[key].request_sha256 != hashes[key]:
            raise UserError(
                f"{folder}: its answer to {key.task}, document {key.doc}, repeat {key.repeat} "
                "belongs to another prompt, other sampling parameters or another seed",
                hint="Choose another folder, or remove this one.",
            )
    return hashes


def _append(
    path: Path,
    generations: Iterator[Generation],
    hashes: Mapping[SampleKey, str],
    answers: dict[SampleKey, Answer],
    lease: Lease,
) -> None:
    synced = time.monotonic()
    with path.open("ab", buffering=0) as file:
        try:
            for generation in generations:
                answer = Answer(request_sha256=hashes[generation.key], generation=generation)
                lease.check()
                rest = _line(answer)
                while rest:
                    rest = rest[file.write(rest) or 0 :]
                answers[generation.key] = answer
                if time.monotonic() - synced > _SYNC_SECONDS:
                    os.fsync(file.fileno())
                    synced = time.monotonic()
        finally:
            os.fsync(file.fileno())


def _line(answer: Answer) -> bytes:
    return f"{seal(codec.to_json(answer))}\n".encode("ascii")


def _sort(path: Path, answers: Mapping[SampleKey, Answer]) -> None:
    """Sort the lines of the file by key, so that it does not depend on the order of generation."""
    if list(answers) != sorted(answers):
        lines = b"".join(_line(answers[key]) for key in sorted(answers))
        replace_text(path, lines.decode("ascii"))
