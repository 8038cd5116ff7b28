"""Run one training stage: check the inputs, train, and publish the checkpoint.

<out>.training/    the state from which the run resumes; see `folder`
<out>/             the trained checkpoint, published when all steps are done
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.data.order import SampleOrder
from amnesia_bench.data.sequence_store import open_store
from amnesia_bench.errors import StoppedError, UserError
from amnesia_bench.modeling.numerics import numeric_settings
from amnesia_bench.printable import message
from amnesia_bench.requests.training import TrainRequest
from amnesia_bench.store.files import explaining_write_errors, make_folder
from amnesia_bench.store.hashing import read_manifest
from amnesia_bench.store.held_files import HeldFiles
from amnesia_bench.store.layout import MANIFEST, check_final, training_path
from amnesia_bench.store.lease import Lease, holding_lease
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.tokenizers.tokenizer import load_tokenizer, tokenizer_identity
from amnesia_bench.tracking.metrics_file import FilePrefix
from amnesia_bench.training.batches import Batches, FileOrder, SequenceOrder, TokenStore
from amnesia_bench.training.blocks import compiler_failure
from amnesia_bench.training.checkpoints import CheckpointFolder
from amnesia_bench.training.determinism import rounding
from amnesia_bench.training.export import Export, publish_trained
from amnesia_bench.training.folder import (
    CHECKPOINTS,
    SETTINGS,
    RunIdentity,
    check_resume_matches,
    check_run_folder,
    read_run_identity,
    remove_run,
)
from amnesia_bench.training.inputs import (
    check_data,
    check_documents,
    check_vocabulary,
    data_parent,
)
from amnesia_bench.training.loop import Loop, LoopParts
from amnesia_bench.training.models import Learner, build_learner, check_supported
from amnesia_bench.training.optimizers import check_optimizer
from amnesia_bench.training.processes import Processes, joined_processes, stop_requests
from amnesia_bench.training.recorder import METRICS, SPEED, Recorder
from amnesia_bench.training.room import check_resources
from amnesia_bench.weights.checkpoint import Checkpoint, open_checkpoint
from amnesia_bench.weights.identity import parent_by_contents
from amnesia_bench.weights.side_files import side_files

_KEPT = "complete checkpoints are kept"


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A training request and its opened data.

    `order` maps sample indices to sequences of `stores`; it is used only if the recipe shuffles.
    `tokenizer_sha256` identifies the tokenizer in the initial checkpoint.
    """

    request: TrainRequest
    stores: Mapping[str, TokenStore]
    order: SequenceOrder
    tokenizer_sha256: str
    out: Path

    @property
    def run(self) -> TrainingRun:
        """The stage and the recipe of the run."""
        return self.request.run


def train(request: TrainRequest, out: Path) -> None:
    """Train to the last step, and publish the trained checkpoint as `out`.

    Every process of the run must call this function. An interrupted run resumes from its newest
    training checkpoint. If it was killed after publishing, only its leftover files are removed.

    Raises:
        UserError: the inputs do not match each other; nothing was written.
        BusyError: another run is writing `out`.
        StageFailedError: the run cannot continue; its last checkpoint is intact.
        StoppedError: SIGTERM or SIGUSR1 stopped the run, and its state is saved; the same call
            resumes it.
    """
    # The checkpoint is opened before its tokenizer, so that the error for an adapter is not that it
    # has no tokenizer.
    open_checkpoint(request.init)
    mixture = request.run.train.mixture
    request = request.model_copy(update={"data": _in_order(request.data, mixture)})
    stores = {name: open_store(folder) for name, folder in request.data.items()}
    sizes = [store.num_sequences for store in stores.values()]
    run_job(
        TrainingJob(
            request=request,
            stores=stores,
            order=SampleOrder(sizes, list(mixture.values()), request.run.train.seed),
            tokenizer_sha256=tokenizer_identity(load_tokenizer(request.init)),
            out=out,
        )
    )


def run_job(job: TrainingJob) -> None:
    """Train to the last step and publish the result; see `train`."""
    if not _run_to_the_end(job):
        raise StoppedError(
            f"{job.out}: stopped by a signal; the state is saved in {training_path(job.out)}",
            hint="The same command resumes.",
        )


def _in_order(data: Mapping[str, Path], mixture: Mapping[str, float]) -> dict[str, Path]:
    """Return the data folders in the order of the mixture, which affects the order of samples."""
    if missing := [name for name in mixture if name not in data]:
        raise UserError(f"--data {missing[0]}=FOLDER is missing")
    if unknown := [name for name in data if name not in mixture]:
        raise UserError(
            f"--data {unknown[0]}: not a source of this stage, which mixes {', '.join(mixture)}",
            hint="Omit it, or change train.mixture.",
        )
    return {name: data[name] for name in mixture}


def _run_to_the_end(job: TrainingJob) -> bool:
    """Train and publish; return False if a signal stopped the run before its last step."""
    with (
        stop_requests() as stop_requested,
        joined_processes() as processes,
        rounding(processes.device, deterministic=job.run.train.deterministic),
    ):
        if processes.on_first(lambda: _finished_before(job)):
            return True
        provenance = processes.on_first(
            lambda: collect_provenance(sys.argv, seeds={"training": job.run.train.seed})
        )
        check_optimizer(job.run.train, processes.size)
        if job.run.train.compile:
            processes.agree(compiler_failure(processes.device))
        init, teacher = processes.on_first(lambda: _opened(job))
        on_cpu = processes.device.type == "cpu"
        processes.on_first(lambda: check_resources(init, job.run, job.out, on_cpu=on_cpu))
        batches = Batches(job.run, job.stores, _order(job), processes.rank, processes.size)
        folder = training_path(job.out)
        with _owned(folder, processes) as check_lease, explaining_write_errors(job.out, _KEPT):
            input_files = processes.on_first(lambda: _note_input_files(job, init, teacher))
            identity = processes.on_first(
                lambda: _record_identity(job, folder, init, teacher, processes.device)
            )
            learner = build_learner(job.run, init, teacher, processes)

            def check_unchanged() -> None:
                check_lease()
                input_files.check()

            processes.on_first(check_unchanged)
            if not _run_steps(job, learner, batches, processes, stop_requested, check_unchanged):
                return False
            processes.on_first(check_unchanged)
            export = Export(
                init=init,
                parents=identity.parents,
                side_files=(folder / SETTINGS, folder / METRICS),
                speed=folder / SPEED,
                provenance=provenance,
            )
            publish_trained(export, learner, processes, job.out)
            processes.on_first(lambda: _clear(folder))
    return True


def _run_steps(
    job: TrainingJob,
    learner: Learner,
    batches: Batches,
    processes: Processes,
    stop_requested: Callable[[], bool],
    check_unchanged: Callable[[], None],
) -> bool:
    """Run the remaining steps; return True if all are done, False if a signal stopped them."""
    folder = training_path(job.out)
    recorder = Recorder(job.run, folder, processes.first, check_unchanged)
    checkpoints = CheckpointFolder(
        folder / CHECKPOINTS, job.run.train.checkpoints, processes, records=recorder.written
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
    saved = loop.start()
    done, kept = (0, {}) if saved is None else (saved.step, saved.records)
    with _opened_by_first(recorder, done, kept, processes):
        return loop.run(done)


def _finished_before(job: TrainingJob) -> bool:
    """Return whether this run was already published; if so, remove its remaining folder.

    This is the case if it was killed between publishing and the removal of that folder.
    """
    folder = training_path(job.out)
    settings = (path / SETTINGS for path in (job.out, folder))
    if not ((job.out / MANIFEST).is_file() and all(path.is_file() for path in settings)):
        return False
    with suppress(UserError):  # one of the files does not contain the settings of a run
        published, resumable = (read_run_identity(path / SETTINGS) for path in (job.out, folder))
        ours = RunIdentity(run=job.run, parents=())
        if published == resumable and not resumable.differences(ours):
            with holding_lease(folder):
                _clear(folder)
            sys.stderr.write(f"{job.out}: already finished; {folder.name} is removed\n")
            return True
    return False


def _clear(folder: Path) -> None:
    if foreign := remove_run(folder):
        what = f"{folder}: kept, since this run did not write {', '.join(foreign)}\n"
        sys.stderr.write(message(what))


def _opened(job: TrainingJob) -> tuple[Checkpoint, Checkpoint | None]:
    """Check all inputs before anything is written or loaded; return `init` and the teacher."""
    check_final(job.out)
    if os.path.lexists(job.out):
        raise UserError(
            f"{job.out}: already exists; nothing was written",
            hint="Choose another output folder, or remove this one.",
        )
    needs_teacher = job.run.train.objective != "next_token"
    if needs_teacher != (job.request.teacher is not None):
        name = job.run.train.teacher
        raise UserError(
            f"{job.run.train.name} learns from a teacher ({name})"
            if needs_teacher
            else f"{job.run.train.name} has no teacher",
            hint="Give its folder with --teacher." if needs_teacher else "Omit --teacher.",
        )
    check_data(job.run, job.stores, job.tokenizer_sha256)
    init = open_checkpoint(job.request.init)
    teacher = None if job.request.teacher is None else open_checkpoint(job.request.teacher)
    for checkpoint in (init,) if teacher is None else (init, teacher):
        check_supported(checkpoint)
    check_vocabulary(job.stores, init)
    check_documents(job.run, job.stores, init)
    check_run_folder(training_path(job.out))
    return init, teacher


def _order(job: TrainingJob) -> SequenceOrder:
    if job.run.recipe.shuffle:
        return job.order
    return FileOrder([store.num_sequences for store in job.stores.values()])


@contextmanager
def _owned(folder: Path, processes: Processes) -> Iterator[Callable[[], None]]:
    """Create the folder of the run, and hold its lease during the block.

    Yields a function with which the first process checks that it still holds the lease.
    """
    with ExitStack() as stack:
        leases: list[Lease] = []
        created: list[Path] = []

        def take() -> None:
            with explaining_write_errors(folder, _KEPT):
                created.extend([] if folder.exists() else [folder])
                make_folder(folder)
                make_folder(folder / CHECKPOINTS)
                leases.append(stack.enter_context(holding_lease(folder)))

        processes.on_first(take)
        try:
            yield lambda: leases[0].check()
        except UserError:
            # An input was refused before the first checkpoint, so a new folder is removed again.
            if created and not any((folder / CHECKPOINTS).iterdir()):
                remove_run(folder)
            raise


def _note_input_files(job: TrainingJob, init: Checkpoint, teacher: Checkpoint | None) -> HeldFiles:
    """Record the state (inode, size, mtime) of all input files before they are hashed.

    The run compares the files with this record after loading the model, at every save and before
    publishing.
    """
    files = init.held + HeldFiles.hold(init.folder / name for name in side_files(init.folder))
    if teacher is not None:
        files += teacher.held
    data_files = (
        path / entry.path
        for path in job.request.data.values()
        for entry in read_manifest(path).files
    )
    return files + HeldFiles.hold(data_files)


def _record_identity(
    job: TrainingJob,
    folder: Path,
    init: Checkpoint,
    teacher: Checkpoint | None,
    device: torch.device,
) -> RunIdentity:
    """Hash the inputs, compare them with training.json if the run resumes, and write the file."""
    parents = [parent_by_contents("init", init)]
    parents += [] if teacher is None else [parent_by_contents("teacher", teacher)]
    parents += [data_parent(name, path) for name, path in job.request.data.items()]
    numerics = numeric_settings(device, str(init.config.get("model_type")))
    identity = RunIdentity(run=job.run, parents=tuple(parents), numerics=numerics)
    check_resume_matches(folder, identity)
    return identity


@contextmanager
def _opened_by_first(
    recorder: Recorder, done: int, kept: Mapping[str, FilePrefix], processes: Processes
) -> Iterator[None]:
    """Open the metrics files in the first process; if that fails, all processes raise the error."""
    with ExitStack() as stack:
        processes.on_first(lambda: stack.enter_context(recorder.open(done, kept)))
        yield
