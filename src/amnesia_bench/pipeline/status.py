"""Progress of stages, read from manifests, leases and logs: so it covers other machines too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.bookkeeping import (
    LOG,
    StageState,
    changed_inputs,
    read_failure,
    state_of,
)
from amnesia_bench.pipeline.specs import known_specs
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.records.stages import StageSpec
from amnesia_bench.store.layout import stage_path
from amnesia_bench.store.lease import current_holder

_TAIL_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """A stage, the process that works on it, and its last log line, failure or reason."""

    id: str
    kind: str
    state: StageState
    holder: str
    said: str


def status_of_graph(store: Path, stages: Sequence[Stage]) -> list[StageStatus]:
    """Return the status of every stage of a graph, in its order."""
    return [_status(store, stage) for stage in stages]


def status_of_store(store: Path) -> list[StageStatus]:
    """Return the status of every stage that was ever begun in a store."""
    return [_status(store, spec) for spec in known_specs(store)]


def log_of(store: Path, name: str) -> tuple[StageSpec, Path]:
    """Return the stage that a name means, and its log.

    Args:
        store: the folder of all artifacts.
        name: an id, or how it begins, with its kind or without: `recall.sft_miromind_9b-s0`,
            `sft_miromind_9b-s0`. Of several stages of a name it means the one that the others were
            made of: a training, and not the evaluations of what it trained.

    Raises:
        UserError: there is none, or there are several.
    """
    begin = name.replace("/", ".")  # as versions before 0.2 named stages: KIND/NAME
    specs = {spec.id: spec for spec in known_specs(store)}
    logged = [spec for spec in specs.values() if (stage_path(store, spec.id) / LOG).is_file()]
    found = [spec for spec in logged if any(n.startswith(begin) for n in _names(spec))]
    named = [spec for spec in found if begin in _names(spec)]
    if named:
        first = [s for s in named if all(_is_made_of(other, s, specs) for other in named)]
        found = first or named
    if len(found) == 1:
        return found[0], stage_path(store, found[0].id) / LOG
    if found:
        listed = "\n".join(f"  {spec.id}" for spec in found)
        raise UserError(
            f"{name}: begins the names of {len(found)} stages", hint=f"One of\n{listed}"
        )
    close = get_close_matches(begin, [spec.id for spec in logged], n=5, cutoff=0.3)
    hint = "Did you mean\n" + "\n".join(f"  {id}" for id in close)
    raise UserError(
        f"{name}: no stage with a log in {store}",
        hint=hint if close else "amnesia plan experiment=NAME --stages lists the stages.",
    )


def _names(spec: StageSpec) -> tuple[str, ...]:
    """Return what a stage may be called: its id, with and without kind and hash."""
    visible = spec.id.rpartition("-")[0]
    return spec.id, visible, spec.id.partition(".")[2], visible.partition(".")[2]


def _is_made_of(spec: StageSpec, other: StageSpec, specs: Mapping[str, StageSpec]) -> bool:
    """Return whether a stage is another, or reads it, or reads what was made of it."""
    inputs = (specs[id] for id in spec.inputs if id in specs)
    return spec.id == other.id or any(_is_made_of(read, other, specs) for read in inputs)


def _status(store: Path, stage: Stage | StageSpec) -> StageStatus:
    kind, stage_id = stage.kind, stage.id
    state = state_of(store, kind, stage_id)
    holder = current_holder(stage_path(store, stage_id)) if state is StageState.RUNNING else None
    failure = read_failure(store, stage_id) if state is StageState.FAILED else None
    said = _last_line(stage_path(store, stage_id) / LOG) if failure is None else failure.said
    if state is StageState.STALE:
        said = f"made of another {', '.join(changed_inputs(store, stage_id))}"
    return StageStatus(
        id=stage_id,
        kind=kind,
        state=state,
        holder="" if holder is None else f"process {holder.pid} on {holder.host}",
        said=said,
    )


def _last_line(log: Path) -> str:
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
