r"""Train a stage, or say beforehand what it takes.

  amnesia train estimate --config stage2_2b --processes 8 --gpu h100
  amnesia train --config sft_miromind_2b --data miromind=DATA --init HYPENET --out SFT
  amnesia train --config stage2_2b recipe=halo_parity train.steps=100 \
      --data fineweb_edu=WEB --data ultradata_math=MATH --init HYBRID --teacher QWEN3 --out S2

On several GPUs: python -m amnesia_bench.training.launch --nproc-per-node 8 \
    -m amnesia_bench.cli.main train ...

The same command again resumes an interrupted run; exit code 75 asks for that.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.command import Subcommand
from amnesia_bench.cli.output import print_json, say, shortened, show, size, table
from amnesia_bench.cli.requests import make
from amnesia_bench.config.messages import nearest
from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.costs.gpus import GPUS
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.guard import only_rank_zero_reports
from amnesia_bench.requests.training import GPU_NAMES, EstimateRequest, TrainRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _add_run_arguments(parser)
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="prepared data of a source of the mixture; the name may be left out if there is one",
    )
    parser.add_argument("--init", type=Path, help="folder of the checkpoint to begin with")
    parser.add_argument("--teacher", type=Path, help="stages 1 and 2: folder of the teacher")
    parser.add_argument("--out", type=Path, help="folder to write; must not exist yet")


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", required=True, help="a name of configs/train, or path/to/mine.yaml"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="recipe=halo_parity, train.steps=20, recipe.master_dtype=bf16, ...",
    )


def _training_run(args: argparse.Namespace) -> TrainingRun:
    for word in args.overrides:
        if "=" not in word and not word.startswith("~"):
            raise UserError(
                f"train {shortened(word)}: neither an action nor KEY=VALUE",
                hint=f"{nearest(word, list(SUBCOMMANDS))} An action comes first.",
            )
    return amnesia_bench.load_training(args.config, args.overrides)


def run(args: argparse.Namespace) -> ExitCode:
    return only_rank_zero_reports(lambda: _train(args))


def _train(args: argparse.Namespace) -> ExitCode:
    training = _training_run(args)
    # Not by argparse, which would name these where an action is misspelled.
    for option in ("init", "out", "data"):
        if not getattr(args, option):
            raise UserError(f"--{option} is missing", hint="amnesia train --help shows a command.")
    request = make(
        TrainRequest,
        run=training,
        init=args.init,
        data=_sources(args.data, list(training.train.mixture)),
        teacher=args.teacher,
    )
    amnesia_bench.train(request, args.out)
    return ExitCode.DONE


def _sources(given: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """Return the folder of each source."""
    folders: dict[str, Path] = {}
    for text in given:
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
        "--init", type=Path, help="take the size of this checkpoint, and not of the config's model"
    )
    parser.add_argument("--processes", type=int, default=8, help="number of GPUs (8)")
    parser.add_argument("--gpu", choices=GPU_NAMES, default="h100", help="kind of the GPUs (h100)")
    parser.add_argument("--json", action="store_true", help="print the estimate as JSON")


def _estimate(args: argparse.Namespace) -> ExitCode:
    training, gpu = _training_run(args), GPUS[args.gpu]
    request = make(
        EstimateRequest, run=training, init=args.init, processes=args.processes, gpu=args.gpu
    )
    found = amnesia_bench.estimate(request)
    if args.json:
        print_json(found)
        return ExitCode.DONE
    memory = table(f"memory on each of {args.processes} {gpu.name}", ("part", "GB"))
    for part, value in vars(found.memory).items():
        memory.add_row(part, f"{value / 1e9:.1f}")
    memory.add_row("total", f"{found.memory.total / 1e9:.1f}")
    show(memory)
    parameters, trained = (n / 1e9 for n in (found.parameters, found.trained_parameters))
    say(
        f"{parameters:.3f} B parameters, {trained:.3f} B trained; {found.tokens / 1e6:,.0f} M "
        f"tokens in {training.train.steps:,} steps of {found.tokens_per_step:,}."
    )
    model, hardware = (n / 1e9 for n in (found.flops_per_token, found.hardware_flops_per_token))
    say(
        f"{model:.1f} GFLOP a token ({hardware:.1f} with recomputation); {found.gpu_hours:.1f} "
        f"{gpu.name}-hours at a utilisation of {found.utilisation:.0%}, assumed and not measured."
    )
    say(f"A save takes {size(found.save_bytes)}, the result {size(found.export_bytes)} in bf16.")
    if found.memory.total > gpu.memory_bytes:
        raise UserError(
            f"{found.memory.total / 1e9:.0f} GB do not fit a {gpu.name} of "
            f"{gpu.memory_bytes / 1e9:.0f} GB",
            hint="Use more processes, a smaller train.micro_batch, or "
            "train.activation_checkpointing=true.",
        )
    return ExitCode.DONE


SUBCOMMANDS = {
    "estimate": Subcommand(
        "memory, FLOPs and hours of a training", _add_estimate_arguments, _estimate
    )
}
