"""How far stages are: read from manifests, leases and logs, so it holds for other machines too."""

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
    known_orders,
    read_failure,
    state_of,
)
from amnesia_bench.pipeline.stage import Stage, about
from amnesia_bench.records.stages import StageOrder
from amnesia_bench.store.layout import stage_path
from amnesia_bench.store.lease import current_holder

_TAIL_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """A stage: who works on it, and the end of its log, its failure, or why it is stale.

    `about` tells it from others of its name.
    """

    id: str
    kind: str
    about: str
    state: StageState
    holder: str
    said: str


def status_of_graph(store: Path, stages: Sequence[Stage]) -> list[StageStatus]:
    """Return the status of every stage of a graph, in its order."""
    return [_status(store, stage) for stage in stages]


def status_of_store(store: Path) -> list[StageStatus]:
    """Return the status of every stage that was ever begun in a store."""
    return [_status(store, order) for order in known_orders(store)]


def log_of(store: Path, name: str) -> tuple[StageOrder, Path]:
    """Return the stage that a name means, and its log.

    Args:
        store: the folder of all artifacts.
        name: an id, or how it begins; KIND/ before it, as in `trained/sft_miromind_9b-s0`, narrows
            it down. Of several stages of a name it means the one that the others were made of: a
            training, and not the evaluations of what it trained.

    Raises:
        UserError: there is none, or there are several.
    """
    kind, _, begin = name.rpartition("/")
    orders = {order.id: order for order in known_orders(store)}
    logged = [each for each in orders.values() if (stage_path(store, each.id) / LOG).is_file()]
    found = [each for each in logged if each.id.startswith(begin) and kind in ("", each.kind)]
    named = [each for each in found if begin in (each.id, each.id.rpartition("-")[0])]
    if named:
        first = [e for e in named if all(_is_made_of(other, e, orders) for other in named)]
        found = first or named
    if len(found) == 1:
        return found[0], stage_path(store, found[0].id) / LOG
    if found:
        listed = "\n".join(
            f"  {order.kind}/{order.id}{about(order.kind, order.settings)}" for order in found
        )
        raise UserError(
            f"{name}: begins the names of {len(found)} stages", hint=f"One of\n{listed}"
        )
    close = get_close_matches(begin, [order.id for order in logged], n=5, cutoff=0.3)
    hint = "Did you mean\n" + "\n".join(f"  {orders[id].kind}/{id}" for id in close)
    raise UserError(
        f"{name}: no stage with a log in {store}",
        hint=hint if close else "amnesia plan experiment=NAME --stages lists the stages.",
    )


def _is_made_of(order: StageOrder, other: StageOrder, orders: Mapping[str, StageOrder]) -> bool:
    """Return whether a stage is another, or reads it, or reads what was made of it."""
    inputs = (orders[id] for id in order.inputs if id in orders)
    return order.id == other.id or any(_is_made_of(each, other, orders) for each in inputs)


def _status(store: Path, stage: Stage | StageOrder) -> StageStatus:
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
        about=about(kind, stage.settings).strip(),
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
