"""One stage of training, from checked inputs to a published checkpoint.

<out>.training/training.json    what the run is and what it reads; a resumed one must agree
<out>.training/metrics.jsonl    one line a step
<out>.training/speed.jsonl      seconds and tokens per second, which differ from run to run
<out>.training/checkpoints/     see `checkpoints`
<out>/                          the trained checkpoint, when all steps are done
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.store.files import explaining_write_errors, make_folder, read_json, write_json
from amnesia_bench.store.layout import MANIFEST, check_final, training_path
from amnesia_bench.store.lease import Lease, holding_lease
from amnesia_bench.training.batches import Batches, FileOrder, SampleOrder, TokenStore
from amnesia_bench.training.checkpoints import CheckpointFolder
from amnesia_bench.training.export import Export, publish_trained
from amnesia_bench.training.inputs import check_data, data_parent
from amnesia_bench.training.loop import Loop, LoopParts
from amnesia_bench.training.models import build_learner
from amnesia_bench.training.optimizers import check_optimizer
from amnesia_bench.training.processes import Processes, joined_processes, stop_requests
from amnesia_bench.training.recorder import METRICS, Recorder
from amnesia_bench.weights.checkpoint import Checkpoint, open_checkpoint
from amnesia_bench.weights.identity import parent_by_contents

SETTINGS = "training.json"
_KEPT = "complete saves are kept"


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What to train, on what, and where to.

    `order` says which sequence of which of `stores` is which sample, when they are shuffled.
    `tokenizer_sha256` is that of the tokenizer in `init`, hashed as the stores hash theirs.
    """

    run: TrainingRun
    init: Path
    teacher: Path | None
    data: Mapping[str, Path]
    stores: Mapping[str, TokenStore]
    order: SampleOrder
    tokenizer_sha256: str
    out: Path


def train(job: TrainingJob) -> ExitCode:
    """Train to the end and publish, or stop on a signal.

    Called by every process of the run. A run that was interrupted goes on from its newest save.

    Returns:
        DONE, or REQUEUE after SIGTERM or SIGUSR1: the state is saved. DONE too where an earlier
        attempt was killed after it had published.

    Raises:
        UserError: the inputs do not fit; nothing was written.
        BusyError: another run is writing `out`.
        StageFailedError: the run cannot go on; its last save is intact.
    """
    with stop_requests() as stop_requested, joined_processes() as processes:
        if processes.on_first(lambda: _finished_before(job)):
            return ExitCode.DONE
        check_optimizer(job.run.train, processes.size)
        init, teacher = processes.on_first(lambda: _opened(job))
        batches = Batches(job.run, job.stores, _order(job), processes.rank, processes.size)
        folder = training_path(job.out)
        with _owned(folder, processes) as check_lease, explaining_write_errors(job.out, _KEPT):
            parents = processes.on_first(lambda: _agree_with_earlier(job, folder, init, teacher))
            learner = build_learner(job.run, init, teacher, processes)
            with ExitStack() as stack:
                recorder = Recorder(job.run, folder, processes.first, check_lease)
                checkpoints = CheckpointFolder(
                    folder / "checkpoints",
                    job.run.train.checkpoints,
                    processes,
                    before_complete=recorder.sync,
                )
                loop = Loop(
                    LoopParts(
                        run=job.run,
                        learner=learner,
                        batches=batches,
                        checkpoints=checkpoints,
                        processes=processes,
                        record=recorder.record,
                        stop_requested=stop_requested,
                    )
                )
                done = loop.start()
                stack.enter_context(recorder.open(done))
                if not loop.run(done):
                    return ExitCode.REQUEUE
            export = Export(
                init=init,
                parents=parents,
                side_files=(folder / SETTINGS, folder / METRICS),
                seed=job.run.train.seed,
            )
            publish_trained(export, learner, processes, job.out)
            if processes.first:
                shutil.rmtree(folder, ignore_errors=True)
    return ExitCode.DONE


def _finished_before(job: TrainingJob) -> bool:
    """Clear up behind a run of this job that was killed between publishing and clearing up."""
    folder = training_path(job.out)
    ours = (path / SETTINGS for path in (job.out, folder))
    if not ((job.out / MANIFEST).is_file() and all(path.is_file() for path in ours)):
        return False
    published, left = (read_json(path / SETTINGS) for path in (job.out, folder))
    if published != left or left["run"] != job.run.model_dump(mode="json"):
        return False
    with holding_lease(folder):
        shutil.rmtree(folder, ignore_errors=True)
    sys.stderr.write(f"{job.out}: finished before; what was left beside it is removed\n")
    return True


def _opened(job: TrainingJob) -> tuple[Checkpoint, Checkpoint | None]:
    """Check what can be checked before anything is written or loaded."""
    check_final(job.out)
    if os.path.lexists(job.out):
        raise UserError(
            f"{job.out}: already exists; nothing was written",
            hint="Choose another output folder, or remove this one.",
        )
    wants_teacher = job.run.train.objective != "next_token"
    if wants_teacher != (job.teacher is not None):
        name = job.run.train.teacher
        raise UserError(
            f"{job.run.train.name} learns from a teacher ({name})"
            if wants_teacher
            else f"{job.run.train.name} has no teacher",
            hint="Give its folder with --teacher." if wants_teacher else "Leave --teacher out.",
        )
    check_data(job.run, job.stores, job.tokenizer_sha256)
    teacher = None if job.teacher is None else open_checkpoint(job.teacher)
    return open_checkpoint(job.init), teacher


def _order(job: TrainingJob) -> SampleOrder:
    if job.run.recipe.shuffle:
        return job.order
    return FileOrder([store.num_sequences for store in job.stores.values()])


@contextmanager
def _owned(folder: Path, processes: Processes) -> Iterator[Callable[[], None]]:
    """Make the folder of the run and hold the only right to write it.

    Yields what the first process calls to see that it still has that right.
    """
    with ExitStack() as stack:
        held: list[Lease] = []

        def take() -> None:
            with explaining_write_errors(folder, _KEPT):
                make_folder(folder)
                make_folder(folder / "checkpoints")
                held.append(stack.enter_context(holding_lease(folder)))

        processes.on_first(take)
        try:
            yield lambda: held[0].check()
        except UserError:
            # A mistake in the inputs: nothing was trained, so nothing is worth keeping.
            if processes.first and not any((folder / "checkpoints").iterdir()):
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _agree_with_earlier(
    job: TrainingJob, folder: Path, init: Checkpoint, teacher: Checkpoint | None
) -> tuple[Parent, ...]:
    """Write down what the run is; on a resume, refuse a run that is another."""
    parents = [parent_by_contents("init", init)]
    parents += [] if teacher is None else [parent_by_contents("teacher", teacher)]
    parents += [data_parent(name, path) for name, path in job.data.items()]
    settings: dict[str, Any] = {
        "run": job.run.model_dump(mode="json"),
        "parents": [codec.to_json(parent) for parent in parents],
    }
    path = folder / SETTINGS
    if not any((folder / "checkpoints").glob("step-*")):
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        write_json(temporary, settings)
        temporary.rename(path)
        return tuple(parents)
    differences = _differences(read_json(path), settings)
    if differences:
        raise UserError(
            f"{folder} holds a run that began with something else: {'; '.join(differences)}",
            hint="Give what it began with to go on, or another --out to begin anew.",
        )
    return tuple(parents)


def _differences(before: Any, now: Any) -> list[str]:
    found = []
    for group in ("train", "recipe"):
        old, new = before["run"][group], now["run"][group]
        for key in sorted(old.keys() | new.keys()):
            # When it saves and who is told changes no result.
            if key not in ("checkpoints", "wandb_project") and old.get(key) != new.get(key):
                found.append(f"{group}.{key} was {old.get(key)}, now {new.get(key)}")
    old_parents = {p["role"]: p for p in before["parents"]}
    for parent in now["parents"]:
        old = old_parents.get(parent["role"], {"identity": None, "location": "nothing"})
        if old["identity"] != parent["identity"]:
            found.append(
                f"{parent['role']} was {old['location']}, and {parent['location']} has other "
                "contents"
            )
    return found
