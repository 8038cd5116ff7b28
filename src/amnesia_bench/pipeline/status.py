"""How far stages are: read from manifests, leases and logs, so it holds for other machines too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from amnesia_bench.errors import UserError
from amnesia_bench.pipeline.bookkeeping import (
    LOG,
    StageState,
    changed_inputs,
    known_orders,
    read_failure,
    state_of,
)
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.store.layout import stage_path
from amnesia_bench.store.lease import current_holder

_TAIL_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """A stage: who works on it, and the end of its log, its failure, or why it is stale."""

    id: str
    kind: str
    state: StageState
    holder: str
    said: str


def status_of_graph(store: Path, stages: Sequence[Stage]) -> list[StageStatus]:
    """Return the status of every stage of a graph, in its order."""
    return [_status(store, stage.kind, stage.id) for stage in stages]


def status_of_store(store: Path) -> list[StageStatus]:
    """Return the status of every stage that was ever begun in a store."""
    return [_status(store, order.kind, order.id) for order in known_orders(store)]


def log_of(store: Path, name: str) -> Path:
    """Return the log of the stage whose id begins with `name`.

    Raises:
        UserError: there is none, or there are several.
    """
    found = sorted(path for path in store.glob(f"stages/{_literal(name)}*/{LOG}"))
    if len(found) == 1 or (found and found[0].parent.name == name):
        return found[0]
    several = ", ".join(path.parent.name for path in found[:5])
    raise UserError(
        f"{name}: {f'begins the ids of {several}' if found else f'no stage with a log in {store}'}",
        hint="amnesia status lists them." if not found else "Type more of it.",
    )


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _status(store: Path, kind: str, stage_id: str) -> StageStatus:
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
