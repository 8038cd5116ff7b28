"""Estimate the tokens, FLOPs, GPU-hours and disk space that an experiment needs. No stage is run.

  amnesia plan experiment=table1
  amnesia plan experiment=table1,table4 --gpu h200 --stages
  amnesia plan experiment=table4 profile=tiny restore=qk,qk_blend --json

Only stages that are not done are counted. The amount of work is an upper bound: it assumes that
every answer has the maximum length and that prompts share no prefix. GPU-hours are computed from
assumed utilisations; the formulas are in costs/stage_cost.py and costs/estimate.py, whose FLOPs and
memory are compared with dry runs of all full-scale training configs. A training stage that may not
fit into the memory of its GPUs is named.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import amnesia_bench
from amnesia_bench.cli.output import plain, print_json, say, show, size, table
from amnesia_bench.costs.gpus import GPUS, Gpu
from amnesia_bench.costs.stage_cost import Cost, total
from amnesia_bench.errors import ExitCode
from amnesia_bench.pipeline.plan import Plan, PlannedStage, Step, by_model
from amnesia_bench.requests.experiments import PlanRequest
from amnesia_bench.requests.training import GPU_NAMES

if TYPE_CHECKING:
    from rich.table import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="experiments, as for `amnesia run`"
    )
    parser.add_argument(
        "--store", type=Path, help="folder of all artifacts (default: $AMNESIA_STORE)"
    )
    parser.add_argument("--gpu", choices=GPU_NAMES, default="h100", help="GPU model (h100)")
    parser.add_argument("--stages", action="store_true", help="list every stage with its state")
    parser.add_argument("--json", action="store_true", help="print stages and totals as JSON")


def run(args: argparse.Namespace) -> ExitCode:
    request = PlanRequest(overrides=tuple(args.overrides), gpu=args.gpu, store=args.store)
    plan = amnesia_bench.plan(request)
    if args.json:
        print_json(_json(plan, args.gpu))
        return ExitCode.DONE
    if args.stages:
        show(_stages(plan, args.gpu))
    if plan.pending:
        models = by_model(plan.pending)
        if any(planned.cost.gpu_hours for planned in plan.pending):
            show(_hours(models, args.gpu))
        show(_amounts(models))
    states = ", ".join(f"{count} {state}" for state, count in plan.states.items())
    say(f"{len(plan.stages)} stages: {states}.")
    if plan.pending:
        say(_summary(plan, args.gpu))
    too_large = [x for x in plan.pending if x.cost.gpu_memory_bytes > GPUS[args.gpu].memory_bytes]
    if too_large:
        say(_do_not_fit(too_large, GPUS[args.gpu]))
    if plan.following:
        say(
            f"{len(plan.following)} finished stages depend on these; they are rebuilt if the "
            "contents of their inputs change."
        )
    return ExitCode.DONE


def _hours(models: dict[str, dict[Step, Cost]], gpu: str) -> Table:
    hours = {
        model: {step: cost.gpu_hours for step, cost in steps.items() if cost.gpu_hours}
        for model, steps in models.items()
    }
    steps = [step for step in Step if any(step in by_step for by_step in hours.values())]
    grid = table(f"remaining {gpu}-hours", ("model", *steps, "all"))
    for model, by_step in hours.items():
        if by_step:
            numbers = [by_step.get(step, 0.0) for step in steps]
            grid.add_row(model, *map(_hour, numbers), _hour(sum(numbers)))
    sums = [sum(by_step.get(step, 0.0) for by_step in hours.values()) for step in steps]
    grid.add_section()
    grid.add_row("all", *map(_hour, sums), _hour(sum(sums)))
    return grid


def _amounts(models: dict[str, dict[Step, Cost]]) -> Table:
    columns = ("trained tokens", "prefilled", "generated", "FLOP", "disk", "saves at most")
    grid = table("remaining tokens, operations and bytes", ("model", *columns))
    costs = {model: total(steps.values()) for model, steps in models.items()}
    for model, cost in costs.items():
        grid.add_row(model, *_amounts_of(cost))
    grid.add_section()
    grid.add_row("all", *_amounts_of(total(costs.values())))
    return grid


def _stages(plan: Plan, gpu: str) -> Table:
    on_gpus = any(planned.cost.gpu_hours for planned in plan.stages)
    columns = ("state", "stage", f"{gpu}-hours" if on_gpus else "tokens", "disk")
    grid = table("stages, each after its inputs", columns, left=2)
    for planned in plan.stages:
        cost = planned.cost
        amount = _hour(cost.gpu_hours) if on_gpus else _tokens(cost.tokens)
        grid.add_row(planned.state, planned.stage.id, amount, size(cost.disk_bytes))
    return grid


def _summary(plan: Plan, gpu: str) -> str:
    cost = total(planned.cost for planned in plan.pending)
    hours = f"{cost.gpu_hours:,.0f} {gpu}-hours, " if cost.gpu_hours else ""
    return (
        f"Remaining: {hours}{_tokens(cost.tokens)} tokens, {cost.flops:.2g} FLOP, "
        f"{size(cost.disk_bytes)} of disk, and {size(cost.transient_bytes)} "
        "more during the largest training."
    )


def _do_not_fit(stages: list[PlannedStage], gpu: Gpu) -> str:
    names = ", ".join(
        f"{planned.stage.id} ({planned.cost.gpu_memory_bytes / 1e9:.0f} GB on each of "
        f"{planned.stage.gpus} GPUs)"
        for planned in stages
    )
    return (
        f"May not fit into the {gpu.memory_bytes / 1e9:.0f} GB of a {gpu.name}: {names}. Use more "
        "GPUs; `amnesia train dry-run` calculates the peak of a config more closely."
    )


def _amounts_of(cost: Cost) -> Iterable[str]:
    yield from map(_tokens, (cost.trained_tokens, cost.read_tokens, cost.new_tokens))
    yield f"{cost.flops:.1e}" if cost.flops else "-"
    yield size(cost.disk_bytes)
    yield size(cost.transient_bytes) if cost.transient_bytes else "-"


def _hour(hours: float) -> str:
    return f"{hours:,.1f}" if hours else "-"


def _tokens(count: int) -> str:
    if count >= 1e9:
        return f"{count / 1e9:,.2f} B"
    return f"{count / 1e6:,.2f} M" if count else "-"


def _json(plan: Plan, gpu: str) -> dict[str, Any]:
    return {
        "gpu": gpu,
        "states": plan.states,
        "left": plain(total(planned.cost for planned in plan.pending)),
        "left_by_model": {
            model: {step: plain(cost) for step, cost in steps.items()}
            for model, steps in by_model(plan.pending).items()
        },
        "stages": [_stage_json(planned) for planned in plan.stages],
    }


def _stage_json(planned: PlannedStage) -> dict[str, Any]:
    stage = planned.stage
    return {
        "id": stage.id,
        "kind": stage.kind,
        "state": planned.state,
        "step": planned.step,
        "model": planned.model,
        "gpus": stage.gpus,
        "inputs": [read.id for read in stage.inputs],
        "cost": plain(planned.cost),
    }
