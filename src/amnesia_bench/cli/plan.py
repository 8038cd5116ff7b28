"""Say what an experiment will take: tokens, FLOPs, GPU-hours, disk. Nothing is started or written.

  amnesia plan experiment=table1
  amnesia plan experiment=table1,table4 --gpu h200 --stages
  amnesia plan experiment=table4 profile=tiny restore=qk,qk_blend --json

It counts what is not done yet. Answers are counted as long as they may become, and prompts as if
none shared a prefix: upper bounds. Utilisations are assumed; costs/stage_cost.py has the formulas.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import amnesia_bench
from amnesia_bench.cli.output import plain, print_json, say, show, size, table
from amnesia_bench.costs.stage_cost import Cost, total
from amnesia_bench.errors import ExitCode
from amnesia_bench.pipeline.plan import Plan, PlannedStage, Step, by_model
from amnesia_bench.requests.experiments import PlanRequest
from amnesia_bench.requests.training import GPU_NAMES

if TYPE_CHECKING:
    from rich.table import Table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="what to run, as for `amnesia run`"
    )
    parser.add_argument(
        "--store", type=Path, help="folder of all artifacts (default: $AMNESIA_STORE)"
    )
    parser.add_argument("--gpu", choices=GPU_NAMES, default="h100", help="kind of GPU (h100)")
    parser.add_argument("--stages", action="store_true", help="list every stage with its state")
    parser.add_argument("--json", action="store_true", help="print stages and totals as JSON")


def run(args: argparse.Namespace) -> ExitCode:
    request = PlanRequest(overrides=tuple(args.overrides), gpu=args.gpu, store=args.store)
    found = amnesia_bench.plan(request)
    if args.json:
        print_json(_json(found, args.gpu))
        return ExitCode.DONE
    if args.stages:
        show(_stages(found, args.gpu))
    if found.left:
        models = by_model(found.left)
        if any(each.cost.gpu_hours for each in found.left):
            show(_hours(models, args.gpu))
        show(_amounts(models))
    states = ", ".join(f"{count} {state}" for state, count in found.states.items())
    say(f"{len(found.stages)} stages: {states}.")
    if found.left:
        say(_summary(found, args.gpu))
    if found.following:
        say(
            f"{len(found.following)} stages that are done follow from these, and are made again "
            "if these come out with other contents."
        )
    return ExitCode.DONE


def _hours(models: dict[str, dict[Step, Cost]], gpu: str) -> Table:
    hours = {
        model: {step: cost.gpu_hours for step, cost in steps.items() if cost.gpu_hours}
        for model, steps in models.items()
    }
    steps = [step for step in Step if any(step in each for each in hours.values())]
    grid = table(f"{gpu}-hours that are left", ("model", *steps, "all"))
    for model, each in hours.items():
        if each:
            numbers = [each.get(step, 0.0) for step in steps]
            grid.add_row(model, *map(_hour, numbers), _hour(sum(numbers)))
    sums = [sum(each.get(step, 0.0) for each in hours.values()) for step in steps]
    grid.add_section()
    grid.add_row("all", *map(_hour, sums), _hour(sum(sums)))
    return grid


def _amounts(models: dict[str, dict[Step, Cost]]) -> Table:
    columns = ("trained tokens", "read", "answered", "FLOP", "disk", "saves at most")
    grid = table("tokens, operations and bytes that are left", ("model", *columns))
    costs = {model: total(steps.values()) for model, steps in models.items()}
    for model, cost in costs.items():
        grid.add_row(model, *_amounts_of(cost))
    grid.add_section()
    grid.add_row("all", *_amounts_of(total(costs.values())))
    return grid


def _stages(found: Plan, gpu: str) -> Table:
    on_gpus = any(each.cost.gpu_hours for each in found.stages)
    columns = ("state", "stage", f"{gpu}-hours" if on_gpus else "tokens", "disk")
    grid = table("stages, each behind what it reads", columns, left=2)
    for each in found.stages:
        cost = each.cost
        amount = _hour(cost.gpu_hours) if on_gpus else _tokens(cost.tokens)
        grid.add_row(each.state, each.stage.id, amount, size(cost.disk_bytes))
    return grid


def _summary(found: Plan, gpu: str) -> str:
    cost = total(each.cost for each in found.left)
    hours = f"{cost.gpu_hours:,.0f} {gpu}-hours, " if cost.gpu_hours else ""
    return (
        f"Left: {hours}{_tokens(cost.tokens)} tokens, {cost.flops:.2g} FLOP, "
        f"{size(cost.disk_bytes)} of disk, and {size(cost.transient_bytes)} "
        "more while the largest training runs."
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


def _json(found: Plan, gpu: str) -> dict[str, Any]:
    return {
        "gpu": gpu,
        "states": found.states,
        "left": plain(total(each.cost for each in found.left)),
        "left_by_model": {
            model: {step: plain(cost) for step, cost in steps.items()}
            for model, steps in by_model(found.left).items()
        },
        "stages": [_stage_json(each) for each in found.stages],
    }


def _stage_json(each: PlannedStage) -> dict[str, Any]:
    stage = each.stage
    return {
        "id": stage.id,
        "kind": stage.kind,
        "state": each.state,
        "step": each.step,
        "model": each.model,
        "gpus": stage.gpus,
        "inputs": [read.id for read in stage.inputs],
        "cost": plain(each.cost),
    }
