"""Record how long each attempt at a stage took, in `<store>/stages/<id>/attempts.json`.

A stage that was interrupted resumes, so its run time is the sum over its attempts. Manifests do not
contain it: that of a trained checkpoint, for example, begins when training has ended.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.bookkeeping import now
from amnesia_bench.records import codec
from amnesia_bench.records.stages import StageAttempt
from amnesia_bench.store.files import read_json, replace_text
from amnesia_bench.store.layout import stage_path

ATTEMPTS = "attempts.json"


@dataclass(frozen=True)
class _Attempts:
    attempts: tuple[StageAttempt, ...]


@contextmanager
def recording_attempt(folder: Path, gpus: int, gpu: str | None) -> Iterator[None]:
    """Record the duration of the `with` block as an attempt at the stage of this folder.

    Args:
        folder: the stage's folder in `stages`.
        gpus: the number of GPUs that the attempt holds.
        gpu: the model of these GPUs.
    """
    earlier = _read(folder / ATTEMPTS)
    attempt = StageAttempt(started=now(), seconds=None, gpus=gpus, gpu=gpu)
    begin = time.monotonic()
    _write(folder / ATTEMPTS, (*earlier, attempt))
    try:
        yield
    finally:
        attempt = replace(attempt, seconds=round(time.monotonic() - begin, 3))
        _write(folder / ATTEMPTS, (*earlier, attempt))


def forget_attempts(folder: Path) -> None:
    """Remove the record, because the work of all attempts was discarded."""
    (folder / ATTEMPTS).unlink(missing_ok=True)


def measured_gpu_hours(store: Path, stage_id: str, gpu: str) -> float | None:
    """Return the GPU-hours of all attempts at a stage.

    None if they are unknown: a worker was killed, or an attempt used GPUs of another model. `gpu`
    is a name in `costs.gpus`, such as "h100".
    """
    attempts = _read(stage_path(store, stage_id) / ATTEMPTS)
    hours = 0.0
    for attempt in attempts:
        if attempt.seconds is None or not attempt.gpus or gpu not in (attempt.gpu or "").lower():
            return None
        hours += attempt.seconds * attempt.gpus / 3600
    return hours or None


def _read(path: Path) -> tuple[StageAttempt, ...]:
    with suppress(UserError):  # the file is missing or damaged
        return codec.from_json(_Attempts, {"attempts": read_json(path)}, str(path)).attempts
    return ()


def _write(path: Path, attempts: Sequence[StageAttempt]) -> None:
    with suppress(OSError):  # on a full disk, the stage itself reports the problem
        replace_text(path, json.dumps(codec.to_json(list(attempts)), indent=2) + "\n")
