"""Return the status of stages from their manifests, leases and logs.

Because these are files, the status includes stages that run on other machines.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from amnesia_bench.errors import MissingEnvironmentError, UserError
from amnesia_bench.pipeline.bookkeeping import (
    LOG,
    StageState,
    changed_inputs,
    read_failure,
    state_of,
)
from amnesia_bench.pipeline.slurm.endings import output_of_job
from amnesia_bench.pipeline.slurm.jobs import SlurmJob, jobs_of, slurm_is_installed
from amnesia_bench.pipeline.specs import known_specs
from amnesia_bench.pipeline.stage import Stage, names_of_stage
from amnesia_bench.records.stages import StageSpec
from amnesia_bench.store.layout import stage_path
from amnesia_bench.store.lease import current_holder

log = logging.getLogger(__name__)

_TAIL_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """The status of a stage.

    `holder` describes the process that runs it and its SLURM job; "" if there is none. `said` is
    the last line of its log, its failure, or the reason why it is stale.
    """

    id: str
    kind: str
    state: StageState
    holder: str
    said: str


def status_of_graph(store: Path, stages: Sequence[Stage]) -> list[StageStatus]:
    """Return the status of every stage of a graph, in the same order."""
    jobs = _jobs(store)
    return [_status(store, stage, jobs) for stage in stages]


def status_of_store(store: Path) -> list[StageStatus]:
    """Return the status of every stage that was ever started in a store."""
    jobs = _jobs(store)
    return [_status(store, spec, jobs) for spec in known_specs(store)]


def _jobs(store: Path) -> Mapping[str, SlurmJob]:
    """Return the jobs of a store; none if SLURM is not installed or does not answer."""
    if not slurm_is_installed():
        return {}
    try:
        return jobs_of(store)
    except MissingEnvironmentError as error:
        log.warning("jobs are not shown: %s", error.what)
        return {}


def logs_of(store: Path, name: str) -> tuple[StageSpec, list[Path]]:
    """Return the spec of the stage that a name identifies, and its log files.

    The last file is the stage's own log, if the stage was started; the outputs of its SLURM jobs
    come before it.

    Args:
        store: the folder of all artifacts.
        name: an id or a prefix of an id, with or without the kind, for example
            `recall.sft_miromind_9b-s0` or `sft_miromind_9b-s0`. If several stages have the name,
            the stage on which all others depend is returned, for example a training stage and not
            the evaluations of its checkpoint.

    Raises:
        UserError: no stage matches, or several do.
    """
    prefix = name.replace("/", ".")  # in versions before 0.2, ids were KIND/NAME
    specs = {spec.id: spec for spec in known_specs(store)}
    logged = [spec for spec in specs.values() if _log_files(store, spec.id)]
    matches = [
        spec for spec in logged if any(n.startswith(prefix) for n in names_of_stage(spec.id))
    ]
    exact = [spec for spec in matches if prefix in names_of_stage(spec.id)]
    if exact:
        first = [s for s in exact if all(_is_made_of(other, s, specs) for other in exact)]
        matches = first or exact
    if len(matches) == 1:
        return matches[0], _log_files(store, matches[0].id)
    if matches:
        ids = "\n".join(f"  {spec.id}" for spec in matches)
        raise UserError(
            f"{name}: {len(matches)} stages have names that begin with this", hint=f"One of\n{ids}"
        )
    close = get_close_matches(prefix, [spec.id for spec in logged], n=5, cutoff=0.3)
    hint = "Did you mean\n" + "\n".join(f"  {id}" for id in close)
    raise UserError(
        f"{name}: no stage with a log in {store}",
        hint=hint if close else "amnesia plan experiment=NAME --stages lists the stages.",
    )


def _log_files(store: Path, stage_id: str) -> list[Path]:
    outputs = stage_path(store, stage_id).glob(output_of_job(store, stage_id, "*").name)
    files = [
        *sorted(outputs, key=lambda path: path.stat().st_mtime),
        stage_path(store, stage_id) / LOG,
    ]
    return [path for path in files if path.is_file() and path.stat().st_size]


def _is_made_of(spec: StageSpec, other: StageSpec, specs: Mapping[str, StageSpec]) -> bool:
    """Return whether `spec` is `other`, or depends on it directly or indirectly."""
    inputs = (specs[id] for id in spec.inputs if id in specs)
    return spec.id == other.id or any(_is_made_of(read, other, specs) for read in inputs)


def _status(store: Path, stage: Stage | StageSpec, jobs: Mapping[str, SlurmJob]) -> StageStatus:
    kind, stage_id = stage.kind, stage.id
    state = state_of(store, kind, stage_id)
    holder = current_holder(stage_path(store, stage_id)) if state is StageState.RUNNING else None
    failure = read_failure(store, stage_id) if state is StageState.FAILED else None
    said = _last_line(stage_path(store, stage_id) / LOG) if failure is None else failure.said
    if state is StageState.STALE:
        said = f"its input {', '.join(changed_inputs(store, stage_id))} has changed"
    process = [] if holder is None else [f"process {holder.pid} on {holder.host}"]
    job = [jobs[stage_id].shown] if stage_id in jobs else []
    return StageStatus(
        id=stage_id,
        kind=kind,
        state=state,
        holder="; ".join(process + job),
        said=said,
    )


def _last_line(log: Path) -> str:
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
