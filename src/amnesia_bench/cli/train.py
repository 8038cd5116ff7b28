r"""Run a training stage of HypeNet, fine-tune a model, or estimate the resources that a run needs.

  amnesia train estimate --config stage2_2b --processes 8 --gpu h100
  amnesia train dry-run --config stage2_2b --processes 8 --gpu h100
  amnesia train --config sft_miromind_2b --data miromind=DATA --init HYPENET --out SFT
  amnesia train --config stage2_2b recipe=halo_parity train.steps=100 \
      --data fineweb_edu=WEB --data ultradata_math=MATH --init HYBRID --teacher QWEN3 --out S2

On several GPUs: python -m amnesia_bench.training.launch --nproc-per-node 8 \
    -m amnesia_bench.cli.main train ...
On several nodes: docs/training.md.

To resume an interrupted run, run the same command again. Exit code 75 means that the training state
was saved and that you should run the command again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import amnesia_bench
from amnesia_bench.cli.command import Subcommand
from amnesia_bench.cli.output import plain, print_json, say, shortened, show, size, table
from amnesia_bench.cli.requests import make
from amnesia_bench.config.cluster_schema import GPU_NAMES
from amnesia_bench.config.messages import nearest
from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.costs.gpus import GPUS, Gpu
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.guard import only_rank_zero_reports
from amnesia_bench.printable import counted
from amnesia_bench.requests.training import (
    DryRunRequest,
    EstimateRequest,
    TrainRequest,
)

if TYPE_CHECKING:
    from amnesia_bench.costs.estimate import TrainingEstimate
    from amnesia_bench.training.dry_run.measure import DryRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_run_arguments(parser)
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="prepared data of a source of the mixture; the name is optional for a single source",
    )
    parser.add_argument("--init", type=Path, help="folder of the initial checkpoint")
    parser.add_argument("--teacher", type=Path, help="stages 1 and 2: folder of the teacher")
    parser.add_argument("--out", type=Path, help="folder to write; must not exist yet")


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", required=True, help="name of a config in configs/train, or path/to/mine.yaml"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="override a value: recipe=halo_parity, train.steps=20, recipe.master_dtype=bf16",
    )


def _training_run(args: argparse.Namespace) -> TrainingRun:
    for word in args.overrides:
        if "=" not in word and not word.startswith("~"):
            raise UserError(
                f"train {shortened(word)}: neither a sub-command nor KEY=VALUE",
                hint=f"{nearest(word, list(SUBCOMMANDS))} The sub-command comes first.",
            )
    return amnesia_bench.load_training(args.config, args.overrides)


def run(args: argparse.Namespace) -> ExitCode:
    return only_rank_zero_reports(lambda: _train(args))


def _train(args: argparse.Namespace) -> ExitCode:
    training = _training_run(args)
    # Checked here because argparse would report missing options if a sub-command is misspelled.
    for option in ("init", "out", "data"):
        if not getattr(args, option):
            raise UserError(
                f"--{option} is missing", hint="amnesia train --help shows a complete command."
            )
    request = make(
        TrainRequest,
        run=training,
        init=args.init,
        data=_sources(args.data, list(training.train.mixture)),
        teacher=args.teacher,
    )
    amnesia_bench.train(request, args.out)
    return ExitCode.DONE


def _sources(values: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """Parse the values of --data, and return the folder of each source by the source's name."""
    folders: dict[str, Path] = {}
    for text in values:
        name, equals, folder = text.partition("=")
        if not equals and len(names) == 1:
            name, folder = names[0], text
        if name not in names or not folder or name in folders:
            raise UserError(
                f"--data {text}: expected NAME=FOLDER, once for each of {', '.join(names)}"
            )
        folders[name] = Path(folder)
    return folders


def _add_estimate_arguments(parser: argparse.ArgumentParser) -> None:
    _add_run_arguments(parser)
    parser.add_argument(
        "--init", type=Path, help="use the shape of this checkpoint instead of the config's model"
    )
    parser.add_argument("--processes", type=int, default=8, help="number of GPUs (8)")
    parser.add_argument("--gpu", choices=GPU_NAMES, default="h100", help="GPU model (h100)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _estimate(args: argparse.Namespace) -> ExitCode:
    training, gpu = _training_run(args), GPUS[args.gpu]
    request = make(
        EstimateRequest, run=training, init=args.init, processes=args.processes, gpu=args.gpu
    )
    estimate = amnesia_bench.estimate(request)
    if args.json:
        print_json(estimate)
    else:
        _show_estimate(estimate, training, args.processes, gpu)
    if estimate.memory.total > gpu.memory_bytes:
        raise UserError(
            f"{estimate.memory.total / 1e9:.0f} GB do not fit into the "
            f"{gpu.memory_bytes / 1e9:.0f} GB of a {gpu.name}",
            hint=f"{_what_to_change(training)} The estimate is an upper bound; `amnesia train "
            "dry-run` is closer.",
        )
    return ExitCode.DONE


def _show_estimate(
    estimate: TrainingEstimate, training: TrainingRun, processes: int, gpu: Gpu
) -> None:
    memory = table("memory per GPU", ("part", "GB"))
    for part, value in vars(estimate.memory).items():
        memory.add_row(part, f"{value / 1e9:.1f}")
    memory.add_row("total", f"{estimate.memory.total / 1e9:.1f}")
    show(memory)
    parameters, trained = (n / 1e9 for n in (estimate.parameters, estimate.trained_parameters))
    say(
        f"{parameters:.3f} B parameters, {trained:.3f} B trained; {estimate.tokens / 1e6:,.0f} M "
        f"tokens in {training.train.steps:,} steps of {estimate.tokens_per_step:,}."
    )
    flops = (estimate.flops_per_token, estimate.hardware_flops_per_token)
    model, hardware = (n / 1e9 for n in flops)
    say(
        f"{model:.1f} GFLOP per token ({hardware:.1f} with recomputation); "
        f"{estimate.gpu_hours:.1f} {gpu.name}-hours at an assumed utilisation of "
        f"{estimate.utilisation:.0%}."
    )
    say(
        f"Disk: {size(estimate.save_bytes)} per save, {size(estimate.export_bytes)} for the final "
        "checkpoint in bf16."
    )


def _what_to_change(training: TrainingRun) -> str:
    """Return the sentence that names the config values that would lower the peak memory."""
    train = training.train
    changes = ["more processes"]
    if train.micro_batch > 1:
        changes.append(f"train.micro_batch={train.micro_batch // 2}")
    if train.activation_checkpointing != "full":
        changes.append("train.activation_checkpointing=full")
    if train.loss_chunk_rows > 512:
        changes.append(f"train.loss_chunk_rows={train.loss_chunk_rows // 2}")
    return f"Use {', or '.join(changes)}."


def _dry_run(args: argparse.Namespace) -> ExitCode:
    training, gpu = _training_run(args), GPUS[args.gpu]
    shared = {"run": training, "init": args.init, "processes": args.processes}
    estimate = amnesia_bench.estimate(make(EstimateRequest, **shared, gpu=args.gpu))
    result = amnesia_bench.dry_run(make(DryRunRequest, **shared))
    needed = result.peak + estimate.memory.reserve
    if args.json:
        fits = needed <= gpu.memory_bytes
        print_json({"dry_run": plain(result), "estimate": plain(estimate), "fits": fits})
    else:
        _show_dry_run(result, estimate)
    if needed > gpu.memory_bytes:
        raise UserError(
            f"{needed / 1e9:.0f} GB do not fit into the {gpu.memory_bytes / 1e9:.0f} GB of a "
            f"{gpu.name}: {result.peak / 1e9:.1f} GB at the peak, in the {result.peak_phase} "
            f"phase, and a reserve of {estimate.memory.reserve / 1e9:.0f} GB",
            hint=_what_to_change(training),
        )
    return ExitCode.DONE


def _show_dry_run(result: DryRun, estimate: TrainingEstimate) -> None:
    nodes = result.processes // result.per_node
    layout = counted(result.processes, "GPU") + (f" in {nodes} nodes" if nodes > 1 else "")
    bound = estimate.memory.total - estimate.memory.reserve
    numbers = table(f"one training step on {layout}", ("value", "dry run", "estimate", "ratio"))
    for phase, peak in result.peak_bytes.items():
        numbers.add_row(f"GB at the peak, {phase}", f"{peak / 1e9:.2f}", "", "")
    for name, ours, theirs in (
        ("GB at the peak", result.peak, bound),
        ("GFLOP per token", result.flops_per_token, estimate.flops_per_token),
        ("with recomputation", result.hardware_flops_per_token, estimate.hardware_flops_per_token),
    ):
        numbers.add_row(name, f"{ours / 1e9:.2f}", f"{theirs / 1e9:.2f}", f"{theirs / ours:.3f}")
    show(numbers)
    traffic = table("collectives per micro-batch", ("kind", "count", "GB"))
    for kind, total in result.collectives.items():
        traffic.add_row(kind, f"{total.count:.1f}", f"{total.bytes / 1e9:.2f}")
    show(traffic)
    documents = "1 document" if result.documents == 1 else f"{result.documents} equal documents"
    say(
        "Calculated for rank 0, without the allocator's gaps, CUDA and NCCL "
        f"({estimate.memory.reserve / 1e9:.0f} GB are reserved for them); {documents} per sequence."
    )


SUBCOMMANDS = {
    "estimate": Subcommand(
        "memory, FLOPs and hours of a training run", _add_estimate_arguments, _estimate
    ),
    "dry-run": Subcommand(
        "run one training step without data or GPU: memory, FLOPs and collectives",
        _add_estimate_arguments,
        _dry_run,
    ),
}
