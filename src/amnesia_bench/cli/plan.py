"""Estimate the tokens, FLOPs, GPU-hours and disk space that an experiment needs. No stage is run.

  amnesia plan experiment=table1
  amnesia plan experiment=table1,table4 --gpu h200 --stages
  amnesia plan experiment=table4 profile=tiny restore=qk,qk_blend --json
  amnesia plan experiment=table1 --gpus 32 --why
  amnesia plan experiment=table1 --why recall.sft_miromind_9b-s0.262144

Only stages that are not done are counted. Answers of models that were trained on chains of thought
are expected to have the lengths of a published model (costs/answer_lengths.py), and all others the
maximum length; the bound assumes the maximum length of all. GPU-hours are computed from assumed
utilisations, which finished stages correct; the formulas are in the modules of costs, whose FLOPs
and memory of training are compared with dry runs of all full-scale configs. Core-hours of stages
on the CPU are computed from speeds that were measured with small models. A training stage that
may not fit into the memory of its GPUs is named.

--why explains the numbers: the terms of the GPU-hours of all stages, and what decides each of them.
--why STAGE explains one stage: the terms of its GPU-hours, and why it is not a cache hit, that is
how it differs from the nearest finished stage.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import amnesia_bench
from amnesia_bench.cli.output import plain, print_json, say, show, size, table
from amnesia_bench.cli.plan_why import miss_lines, terms_table
from amnesia_bench.cli.requests import make
from amnesia_bench.config.cluster_schema import GPU_NAMES
from amnesia_bench.costs.gpus import GPUS, Gpu
from amnesia_bench.costs.stage_cost import Cost, total
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.pipeline.plan import Plan, PlannedStage, Step, by_model
from amnesia_bench.printable import counted
from amnesia_bench.requests.experiments import ExplainStageRequest, PlanRequest

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
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="also estimate the wall time on N GPUs"
    )
    parser.add_argument(
        "--why",
        nargs="?",
        const="",
        metavar="STAGE",
        help="explain the GPU-hours of all stages; or those of one stage, and why it must run",
    )
    parser.add_argument("--stages", action="store_true", help="list every stage with its state")
    parser.add_argument("--json", action="store_true", help="print stages and totals as JSON")


def run(args: argparse.Namespace) -> ExitCode:
    if args.why:
        return _run_one(args)
    plan = amnesia_bench.plan(_request(args))
    if args.json:
        print_json(_json(plan, args.gpu))
        return ExitCode.DONE
    if args.why is not None and any(planned.terms for planned in plan.pending):
        show(terms_table(plan.pending, args.gpu))
    if args.stages:
        show(_stages(plan, args.gpu))
    if plan.pending:
        models = by_model(plan.pending)
        if any(planned.cost.gpu_hours for planned in plan.pending):
            show(_hours(models, args.gpu, lambda cost: cost.gpu_hours))
        if any(planned.cost.core_hours for planned in plan.pending):
            show(_hours(models, "core", lambda cost: cost.core_hours))
        show(_amounts(models))
    for sentence in _sentences(plan, args):
        say(sentence)
    return ExitCode.DONE


def _request(args: argparse.Namespace) -> PlanRequest:
    overrides = tuple(args.overrides)
    return make(PlanRequest, overrides=overrides, gpu=args.gpu, gpus=args.gpus, store=args.store)


def _run_one(args: argparse.Namespace) -> ExitCode:
    """Explain one stage."""
    if args.json:
        raise UserError(
            "--why STAGE explains in words, so it cannot be combined with --json",
            hint="Omit STAGE: --json contains the terms of all stages.",
        )
    miss = amnesia_bench.explain_stage(
        ExplainStageRequest(overrides=tuple(args.overrides), stage=args.why, store=args.store)
    )
    plan = amnesia_bench.plan(_request(args))
    planned = [planned for planned in plan.stages if planned.stage.id == miss.stage.id]
    if not planned:
        say(f"{miss.stage.id} is not needed: only adopted artifacts depend on it.")
        return ExitCode.DONE
    for line in miss_lines(miss):
        say(line)
    if planned[0].terms:
        show(terms_table(planned, args.gpu))
    return ExitCode.DONE


def _sentences(plan: Plan, args: argparse.Namespace) -> Iterator[str]:
    states = ", ".join(f"{count} {state}" for state, count in plan.states.items())
    yield f"{counted(len(plan.stages), 'stage')}: {states}."
    if plan.pending:
        yield _summary(plan, args.gpu)
        yield from _corrections(plan)
        yield from _wall_times(plan, args.gpus)
        yield from _cpu_times(plan)
    too_large = [x for x in plan.pending if x.cost.gpu_memory_bytes > GPUS[args.gpu].memory_bytes]
    if too_large:
        yield _do_not_fit(too_large, GPUS[args.gpu])
    if plan.following:
        yield (
            f"{len(plan.following)} finished stages depend on these; they are rebuilt if the "
            "contents of their inputs change."
        )


def _corrections(plan: Plan) -> Iterator[str]:
    if plan.measured_lengths:
        answers = counted(plan.measured_lengths, "finished stage")
        yield f"Expected lengths of answers are those of {answers} where they apply."
    for step, correction in plan.corrections.items():
        stages = counted(correction.stages, "finished stage")
        yield (
            f"The hours of {step} are multiplied by {correction.factor:.2f}, the median of the "
            f"measured over the estimated hours of {stages}."
        )


def _wall_times(plan: Plan, gpus: int | None) -> Iterator[str]:
    path = [stage for stage in plan.critical_path if stage.hours]
    if not path:
        return
    hours = sum(stage.hours for stage in path)
    yield (
        f"At least {hours:.1f} h on any number of GPUs, the time of {path[0].id} to "
        f"{path[-1].id} ({counted(len(path), 'stage')}); stages on the CPU are not counted."
    )
    if gpus is not None:
        yield f"About {plan.wall_hours:.1f} h on {counted(gpus, 'GPU')}."


def _cpu_times(plan: Plan) -> Iterator[str]:
    hours = total(planned.cost for planned in plan.pending).core_hours
    if hours:
        cores = len(os.sched_getaffinity(0))
        yield (
            f"Stages on the CPU: about {hours:,.1f} core-hours, {hours / cores:,.1f} h on the "
            f"{counted(cores, 'core')} of this machine if nothing else runs. An interrupted run "
            "resumes."
        )


def _hours(
    models: dict[str, dict[Step, Cost]], unit: str, hours_of: Callable[[Cost], float]
) -> Table:
    hours = {
        model: {step: hours_of(cost) for step, cost in steps.items() if hours_of(cost)}
        for model, steps in models.items()
    }
    steps = [step for step in Step if any(step in by_step for by_step in hours.values())]
    grid = table(f"remaining {unit}-hours", ("model", *steps, "all"))
    for model, by_step in hours.items():
        if by_step:
            numbers = [by_step.get(step, 0.0) for step in steps]
            grid.add_row(model, *map(_hour, numbers), _hour(sum(numbers)))
    sums = [sum(by_step.get(step, 0.0) for by_step in hours.values()) for step in steps]
    grid.add_section()
    grid.add_row("all", *map(_hour, sums), _hour(sum(sums)))
    return grid


def _amounts(models: dict[str, dict[Step, Cost]]) -> Table:
    columns = (
        *("trained tokens", "in prompts", "prefilled", "generated"),
        *("FLOP", "disk", "saves at most"),
    )
    grid = table("remaining tokens, operations and bytes", ("model", *columns))
    costs = {model: total(steps.values()) for model, steps in models.items()}
    for model, cost in costs.items():
        grid.add_row(model, *_amounts_of(cost))
    grid.add_section()
    grid.add_row("all", *_amounts_of(total(costs.values())))
    return grid


def _stages(plan: Plan, gpu: str) -> Table:
    on_gpus = any(planned.cost.gpu_hours for planned in plan.stages)
    columns = ("state", "stage", f"{gpu}-hours" if on_gpus else "core-hours", "disk")
    grid = table("stages, each after its inputs", columns, left=2)
    for planned in plan.stages:
        cost = planned.cost
        hours = _hour(cost.gpu_hours if on_gpus else cost.core_hours)
        grid.add_row(planned.state, planned.stage.id, hours, size(cost.disk_bytes))
    return grid


def _summary(plan: Plan, gpu: str) -> str:
    cost = total(planned.cost for planned in plan.pending)
    bound = total(planned.bound for planned in plan.pending).gpu_hours
    hours = f"{cost.gpu_hours:,.0f} (at most {bound:,.0f}) {gpu}-hours, " if bound else ""
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
    prompts = cost.read_tokens, cost.prefilled_tokens
    yield from map(_tokens, (cost.trained_tokens, *prompts, cost.new_tokens))
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
        "left_at_most": plain(total(planned.bound for planned in plan.pending)),
        "wall_hours": plan.wall_hours,
        "corrections": {step: plain(each) for step, each in plan.corrections.items()},
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
        "bound": plain(planned.bound),
        "factor": planned.factor,
        "terms": [plain(term) for term in planned.terms],
    }
