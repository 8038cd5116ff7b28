"""Answers that outlive their process: one line per sample, written before the next is begun.

A folder holds `run.json` (what the answers depend on) and `generations.jsonl`, both with
checksums. A run that was killed, at whatever byte, resumes where it stopped; a finished one leaves
the same bytes as if it had never been interrupted. A crash of the machine may take what came since
the last sync.
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
_SYNC_SECONDS = 1.0  # a sync takes milliseconds, and a small model answers as fast
_KEPT = "the answers so far are kept: the same command resumes with the rest"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One line of `generations.jsonl`: the generation, and the hash of the request it answers."""

    request_sha256: str
    generation: Generation


def generate_missing(
    engine: Engine, requests: Sequence[PromptRequest], folder: Path, *, identity: Mapping[str, str]
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
        StageFailedError: the disk is full, or the lease was lost. What is done is kept, unless
            the engine found that its answers are not to be trusted.
        MissingEnvironmentError: the folder may not be written.
    """
    with explaining_write_errors(folder, _KEPT):
        make_folder(folder.parent)
        with holding_lease(folder) as lease:
            make_folder(folder)
            _check_run(folder, {**engine.settings, **identity})
            path = folder / GENERATIONS
            answers = _resume(path)
            wanted = _wanted(requests, answers, folder)
            missing = [i for i, key in enumerate(wanted) if key not in answers]
            if missing:
                unanswered = engine.generate(OnDemand(requests.__getitem__, missing))
                try:
                    _append(path, unanswered, wanted, answers, lease)
                except UntrustedAnswersError:
                    # Those before it came to be the same way; a next run must not take them over.
                    path.unlink()
                    (folder / RUN).unlink()
                    raise
            if len(answers.keys() & wanted.keys()) < len(wanted):
                raise RuntimeError(f"the engine answered only {len(answers)} of {len(wanted)}")
            _sort(path, answers)
    return tuple(answers[key].generation for key in wanted)


def read_generations(folder: Path) -> tuple[Generation, ...]:
    """Return the answers in a folder that no process is writing, in the order of their keys.

    Raises:
        UserError: it holds none, or a damaged line.
    """
    path = folder / GENERATIONS
    if not path.is_file():
        raise UserError(f"{folder}: holds no {GENERATIONS}")
    answers, _ = _read(path, sealed=read_run_record(folder).sealed)
    return tuple(answers[key].generation for key in sorted(answers))


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What answers depend on, by name; `sealed` says whether their lines carry checksums."""

    depends: Mapping[str, str]
    sealed: bool


def read_run_record(folder: Path) -> RunRecord:
    """Read the record of a folder of answers.

    Folders that were not written by `generate`, or by a version without checksums, have none.

    Raises:
        UserError: there is no such record, or it is damaged.
    """
    path = folder / RUN
    found = read_json(path)
    depends = unsealed(found, str(path), "Remove the folder, and generate its answers again.")
    if not isinstance(depends, dict) or not all(isinstance(v, str) for v in depends.values()):
        raise UserError(f"{path}: is not an object of strings")
    return RunRecord(depends=depends, sealed=is_sealed(found))


def _check_run(folder: Path, run: Mapping[str, str]) -> None:
    """Write down what the answers depend on, or compare it with what was written."""
    path = folder / RUN
    if not path.exists():
        if (folder / GENERATIONS).exists():
            raise UserError(
                f"{folder}: holds answers, but no {RUN} that says whose they are",
                hint="Remove the folder, or choose another.",
            )
        replace_text(path, sealed_text(dict(sorted(run.items()))))
        return
    found = read_run_record(folder)
    before = found.depends
    if not found.sealed:
        raise UserError(
            f"{folder}: its answers have no checksums: an older version wrote them, or {RUN} is "
            "damaged",
            hint="`amnesia score` still reads them. To generate more, choose another folder.",
        )
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


def _request_sha256(request: PromptRequest) -> str:
    tokens = request.tokens.astype("<i4", copy=False)
    digest = hashlib.sha256(tokens.tobytes())
    drawn = {"sampling": codec.to_json(request.sampling), "seed": request.seed}
    digest.update(json.dumps(drawn, sort_keys=True).encode())
    return digest.hexdigest()


def _resume(path: Path) -> dict[SampleKey, Answer]:
    """Read the answers there are, and cut off a last line that a process died while writing."""
    if not path.exists():
        path.touch()
        sync_folder(path.parent)
    answers, whole_bytes = _read(path, sealed=True)
    if whole_bytes < path.stat().st_size:
        os.truncate(path, whole_bytes)
    sync_file(path)  # who wrote them may have been killed before
    return answers


def _read(path: Path, *, sealed: bool) -> tuple[dict[SampleKey, Answer], int]:
    """Return the answers of a file in its order, and how many bytes its whole lines take.

    Only a last line without a line break may be incomplete: a process died while it wrote it.
    """
    answers: dict[SampleKey, Answer] = {}
    whole_bytes = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            whole_bytes += len(line)
            try:
                parsed = unseal(line[:-1].decode("ascii")) if sealed else json.loads(line)
                answer = codec.from_json(Answer, parsed, f"{path}, line {number}")
            except (ValueError, RecursionError, UserError) as error:
                raise UserError(
                    f"{path}: line {number} is damaged ({error})",
                    hint="Remove this line, or the folder: what is missing is made again.",
                ) from error
            # Should a key ever come twice, the first counts: it may have been read before.
            answers.setdefault(answer.generation.key, answer)
    return answers, whole_bytes


def _wanted(
    requests: Sequence[PromptRequest], answers: Mapping[SampleKey, Answer], folder: Path
) -> dict[SampleKey, str]:
    """Return the hash of each request by its key, after holding it against the answer there is."""
    wanted: dict[SampleKey, str] = {}
    for request in requests:
        key = request.key
        if key in wanted:
            raise ValueError(f"two requests for {key}")
        wanted[key] = _request_sha256(request)
        if key in answers and answers[key].request_sha256 != wanted[key]:
            raise UserError(
                f"{folder}: its answer to {key.task}, document {key.doc}, repeat {key.repeat} "
                "was to another prompt, or drawn with another sampling or seed",
                hint="Choose another folder, or remove this one.",
            )
    return wanted


def _append(
    path: Path,
    generations: Iterator[Generation],
    wanted: Mapping[SampleKey, str],
    answers: dict[SampleKey, Answer],
    lease: Lease,
) -> None:
    synced = time.monotonic()
    with path.open("ab", buffering=0) as file:
        try:
            for generation in generations:
                answer = Answer(request_sha256=wanted[generation.key], generation=generation)
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
    """Bring the lines into the order of their keys, so that how they came to be leaves no trace."""
    if list(answers) != sorted(answers):
        lines = b"".join(_line(answers[key]) for key in sorted(answers))
        replace_text(path, lines.decode("ascii"))
