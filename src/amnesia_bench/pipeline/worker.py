"""Run one stage: wait for its lease, run it if it is still needed, and record a failure.

The scheduler starts a worker as `python -m amnesia_bench.pipeline.worker STORE ID`. Several workers
for the same stage may exist at once, even on different machines, but only one of them runs the
stage. A finished stage is skipped unless its inputs have changed. The worker prints the id of the
stage if it ran the stage.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from amnesia_bench.errors import AmnesiaError, BusyError, ExitCode, StageFailedError
from amnesia_bench.pipeline.attempts import forget_attempts, recording_attempt
from amnesia_bench.pipeline.bookkeeping import (
    FAILURE,
    LOG,
    StageState,
    check_intact,
    contents_of,
    discard_made,
    now,
    read_inputs,
    state_of,
    write_inputs,
)
from amnesia_bench.pipeline.devices import (
    gpu_lease_folder,
    gpus_of_job,
    holding_gpus,
    visible_gpus,
)
from amnesia_bench.pipeline.restarts import count_restart
from amnesia_bench.pipeline.specs import read_spec, write_specs
from amnesia_bench.pipeline.stage_process import STARTED, StageLauncher, run_spec
from amnesia_bench.printable import message
from amnesia_bench.records import codec
from amnesia_bench.records.artifacts import Parent, Provenance
from amnesia_bench.records.stages import StageFailure, StageSpec
from amnesia_bench.store.files import explain_write_error, make_folder, replace_text
from amnesia_bench.store.layout import MANIFEST, artifact_path, stage_path
from amnesia_bench.store.lease import Lease, holding_lease
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import manifest_of

_WAIT_SECONDS, _MAX_PAUSE_SECONDS = 0.3, 30.0
_MESSAGE_CHARACTERS, _LINES = 1500, 6
_REQUEUES = 3  # maximum number of times that a command may ask to be restarted


def run_stage(store: Path, stage_id: str, launcher: StageLauncher) -> bool:
    """Run a stage, or wait until another process has run it.

    Args:
        store: the folder of all artifacts.
        stage_id: the id of a stage whose spec is in the store.
        launcher: how to start the processes of the stage.

    Returns:
        Whether this worker ran the stage.

    Raises:
        StageFailedError: the command failed, or an input is damaged.
    """
    spec = read_spec(store, stage_id)
    folder = stage_path(store, stage_id)
    did_stage = False
    while state_of(store, spec.kind, stage_id) is not StageState.CACHED:
        with ExitStack() as stack:
            try:
                lease = stack.enter_context(holding_lease(folder))
            except BusyError:
                time.sleep(_WAIT_SECONDS)
                continue
            if state_of(store, spec.kind, stage_id) is not StageState.CACHED:
                _attempt(store, spec, launcher, lease)
                did_stage = True
    return did_stage


def _attempt(store: Path, spec: StageSpec, launcher: StageLauncher, lease: Lease) -> None:
    folder = stage_path(store, spec.id)
    artifact = artifact_path(store, spec.kind, spec.id)
    write_specs(store, [spec])  # `amnesia clean` may have removed the spec in the meantime
    failure = folder / FAILURE
    failure.unlink(missing_ok=True)
    try:
        _check_inputs(store, spec)
        contents = contents_of(store, spec.inputs)
        if read_inputs(store, spec.id) not in (None, contents):
            # The artifact, complete or not, was made from other inputs.
            discard_made(store, spec.kind, spec.id)
            forget_attempts(folder)
        write_inputs(store, spec.id, contents)
        make_folder(artifact.parent)
        if launcher.nodes:
            count_restart(store, spec, launcher.max_restarts)
        provenance = collect_provenance(["amnesia", *spec.command], seeds={})
        model = next(iter(provenance.hardware.gpus), None)
        with _gpus(spec, launcher) as gpus, recording_attempt(folder, spec.gpus, model):
            _run(spec, folder / LOG, gpus, artifact, launcher)
        lease.check()
        _finish(spec, contents, artifact, provenance)
    except (AmnesiaError, OSError) as error:
        explained = explain_write_error(error, artifact) if isinstance(error, OSError) else error
        if explained is None:
            raise
        record = StageFailure(
            exit_code=int(explained.exit_code),
            ended=now(),
            said=str(explained)[-_MESSAGE_CHARACTERS:],
        )
        with suppress(OSError):  # on a full disk, only the message on stderr is possible
            replace_text(failure, json.dumps(codec.to_json(record), indent=2) + "\n")
        raise explained from error


def _check_inputs(store: Path, spec: StageSpec) -> None:
    for stage_id, kind in spec.inputs.items():
        check_intact(store, kind, stage_id)


@contextmanager
def _gpus(spec: StageSpec, launcher: StageLauncher) -> Iterator[tuple[str, ...]]:
    if spec.gpus == 0:
        yield ()
        return
    if launcher.nodes:
        # The batch system assigns GPUs, and may number those of each job from 0.
        yield gpus_of_job(spec.gpus // launcher.nodes)
        return
    with holding_gpus(spec.gpus, visible_gpus(), gpu_lease_folder()) as gpus:
        yield gpus


def _run(
    spec: StageSpec, log: Path, gpus: Sequence[str], artifact: Path, launcher: StageLauncher
) -> None:
    requeues, pause = 0, _WAIT_SECONDS
    while True:
        code = run_spec(artifact.parents[1], spec, log, gpus, launcher)
        if code == ExitCode.REQUEUE and launcher.nodes:
            raise SystemExit(code)  # the batch system asked for the stop; it requeues the job
        if code == ExitCode.REQUEUE and requeues < _REQUEUES:
            requeues += 1
        elif code == ExitCode.BUSY:  # the command of an earlier, killed worker is still running
            time.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)  # that command may train for days
        else:
            break
    # If the command failed but there is a manifest, the command of an earlier, killed worker has
    # finished the artifact.
    if code != ExitCode.DONE and not (artifact / MANIFEST).is_file():
        reason = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        raise StageFailedError(f"amnesia {spec.command[0]} {reason}: {_last_lines(spec, log)}")


def _last_lines(spec: StageSpec, log: Path) -> str:
    """Return what the last attempt wrote to a log: its error message, or else the last lines.

    After the message of the command, torchrun and srun write lines of their own.
    """
    output = log.read_text(encoding="utf-8", errors="replace").rpartition(STARTED)[2]
    lines = output.rstrip().splitlines()[1:]
    title = f"amnesia {spec.command[0]}: "
    first = max((i for i, line in enumerate(lines) if line.startswith(title)), default=-_LINES)
    return "\n".join(lines[first:][:_LINES])[-_MESSAGE_CHARACTERS:]


def _finish(
    spec: StageSpec, contents: Mapping[str, str | None], artifact: Path, provenance: Provenance
) -> None:
    """Write the artifact's manifest, unless the stage's command has already written one."""
    if (artifact / MANIFEST).is_file():
        return
    store = artifact.parents[1]
    inputs = (
        Parent(
            role=name.partition("/")[0], location=str(store / name), identity=f"sha256:{content}"
        )
        for name, content in contents.items()
    )
    manifest = manifest_of(artifact, spec.kind, inputs, provenance)
    replace_text(artifact / MANIFEST, json.dumps(manifest.to_json(), indent=2) + "\n")


def run_worker(arguments: Sequence[str]) -> int:
    """Run the stage that the command-line arguments name, and return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path)
    parser.add_argument("stage", metavar="ID")
    parser.add_argument("--server", metavar="SOCKET", help="run the command in this server")
    parser.add_argument(
        "--driver", type=int, metavar="DESCRIPTOR", help="end when this pipe is closed"
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="RESTARTS",
        help="this is a SLURM job: use its GPUs and nodes; on SIGUSR1, save and exit with 75; fail "
        "after this number of restarts in a row without progress",
    )
    parser.add_argument("--python", metavar="WORDS", help="words that start Python for the stage")
    args = parser.parse_args(arguments)
    launcher = StageLauncher(
        server=args.server,
        python=(sys.executable,) if args.python is None else tuple(shlex.split(args.python)),
        nodes=0 if args.batch is None else int(os.environ["SLURM_JOB_NUM_NODES"]),
        max_restarts=args.batch or 0,
    )

    def terminate(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    def stop_early(number: int, frame: object) -> None:
        raise SystemExit(int(ExitCode.REQUEUE))

    signal.signal(signal.SIGTERM, terminate)
    if args.batch is not None:
        signal.signal(signal.SIGUSR1, stop_early)
    if args.driver is not None:
        threading.Thread(target=_end_with_driver, args=(args.driver,), daemon=True).start()
    try:
        if run_stage(args.store, args.stage, launcher):
            sys.stdout.write(f"{args.stage}\n")
    except AmnesiaError as error:
        sys.stderr.write(message(f"{args.stage}: {error}\n"))
        return int(error.exit_code)
    except OSError as error:
        explained = explain_write_error(error, args.store)
        if explained is None:
            raise
        sys.stderr.write(message(f"{args.stage}: {explained}\n"))
        return int(explained.exit_code)
    return int(ExitCode.DONE)


def _end_with_driver(pipe: int) -> None:
    os.read(pipe, 1)  # blocks until the driver closes its end, since it never writes to the pipe
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(run_worker(sys.argv[1:]))
