"""Print what `amnesia plan --why` explains: the terms of GPU-hours, and why a stage must run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from amnesia_bench.cli.output import percent, shortened, table
from amnesia_bench.costs.decoding import Bound
from amnesia_bench.costs.stage_cost import CostTerm
from amnesia_bench.pipeline.bookkeeping import StageState
from amnesia_bench.pipeline.cache_miss import CacheMiss, StageDifference
from amnesia_bench.pipeline.plan import PlannedStage, Step
from amnesia_bench.printable import counted
from amnesia_bench.requests.reasoning import GenerateRequest

if TYPE_CHECKING:
    from rich.table import Table

_COLUMNS = (
    *("model", "cell", "term", "stages", "tokens each", "computed", "FLOP", "rows", "steps"),
    *("ms per step", "decided by", "hours each", "all"),
)
_DECIDED_BY = {
    Bound.LAUNCH: "launching kernels",
    Bound.MEMORY: "memory bandwidth",
    Bound.COMPUTE: "FLOPs",
}


def terms_table(stages: Iterable[PlannedStage], gpu: str) -> Table:
    """Return the terms of the GPU-hours of stages; equal terms of a model are one row."""
    counts: dict[tuple[str, str, CostTerm, float], int] = {}
    steps = list(Step)
    ordered = sorted(stages, key=lambda planned: (planned.model, steps.index(planned.step)))
    for planned in ordered:
        for term in planned.terms:
            key = planned.model, _cell(planned), term, planned.factor
            counts[key] = counts.get(key, 0) + 1
    grid = table(f"terms of the {gpu}-hours", _COLUMNS, left=3)
    for (model, step, term, factor), count in counts.items():
        hours = term.gpu_hours * factor
        grid.add_row(
            model,
            step,
            term.part,
            str(count),
            _millions(term.tokens),
            percent(term.computed_tokens / term.tokens),
            f"{term.flops:.1e}",
            str(term.rows or "-"),
            f"{term.steps:,}" if term.steps else "-",
            f"{1000 * term.step_seconds:,.1f}" if term.steps else "-",
            _decided_by(term),
            f"{hours:,.2f}",
            f"{hours * count:,.1f}",
        )
    return grid


def _cell(planned: PlannedStage) -> str:
    """Return the step of a stage, with the benchmark of a reasoning evaluation."""
    request = planned.stage.request
    return (
        f"{planned.step}, {request.task}" if isinstance(request, GenerateRequest) else planned.step
    )


def _decided_by(term: CostTerm) -> str:
    share = "" if term.utilisation is None else f", {percent(term.utilisation)} of the peak"
    return _DECIDED_BY[term.bound] + share


def _millions(tokens: int) -> str:
    return f"{tokens / 1e6:,.1f} M"


def miss_lines(miss: CacheMiss) -> Iterator[str]:
    """Yield the sentences that explain why a stage is not a cache hit."""
    stage_id = miss.stage.id
    if miss.state is StageState.CACHED:
        yield f"{stage_id} is finished, so it is a cache hit."
        return
    if miss.state is StageState.STALE:
        yield f"{stage_id} is finished, but its inputs have changed since, so it is rebuilt:"
        yield from (f"  {name}" for name in miss.changed_inputs)
        return
    if miss.state is StageState.RUNNING:
        yield f"{stage_id} is running."
    elif miss.failure is not None:
        yield f"{stage_id} failed in its last attempt:\n{miss.failure}"
    else:
        yield f"{stage_id} has not been run."
    if miss.nearest is None:
        yield f"The store has no finished stage of the kind {miss.stage.kind}."
    else:
        yield f"The nearest finished stage is {miss.nearest.other}."
        yield from _difference_lines(miss.nearest, "")


def _difference_lines(difference: StageDifference, indent: str) -> Iterator[str]:
    if difference.only_version:
        yield (
            f"{indent}Their requests are equal. The version of this kind of stage has changed "
            "since, because the code makes something else of the same request."
        )
    settings = difference.settings
    if settings:
        yield f"{indent}{counted(len(settings), 'setting')} of the stage itself:"
    for each in settings:
        before, now = shortened(each.finished), shortened(each.planned)
        yield f"{indent}  {each.setting}: {before} in the finished stage, {now} now"
    for stage_id in difference.new_inputs:
        yield f"{indent}Its input {stage_id} corresponds to no input of the finished stage."
    for read in difference.inputs:
        yield f"{indent}Its input is now {read.stage} and was {read.other}, which differ in:"
        yield from _difference_lines(read, f"{indent}  ")
