r"""Train a stage, or say beforehand what it takes.

  amnesia train estimate --config stage2_2b --processes 8 --gpu h100
  amnesia train --config sft_miromind_2b --data miromind=DATA --init HYPENET --out SFT
  amnesia train --config stage2_2b recipe=halo_parity train.steps=100 \
      --data fineweb_edu=WEB --data ultradata_math=MATH --init HYBRID --teacher QWEN3 --out S2

On several GPUs: python -m amnesia_bench.training.launch --nproc-per-node 8 \
    -m amnesia_bench.cli.main train ...

The same command again goes on where a run was interrupted; exit code 75 asks for that.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from amnesia_bench.errors import AmnesiaError, ExitCode, MissingEnvironmentError, UserError

if TYPE_CHECKING:
    from amnesia_bench.config.train_schema import TrainingRun

ESTIMATE = "estimate"  # the only action besides training
GPU_NAMES = ("a100", "h100", "h200")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", required=True, help="a name of configs/train, or path/to/mine.yaml"
    )
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
    parser.add_argument("--processes", type=int, default=8, help="estimate: number of GPUs (8)")
    parser.add_argument(
        "--gpu", choices=GPU_NAMES, default="h100", help="estimate: their kind (h100)"
    )
    parser.add_argument("--json", action="store_true", help="estimate: print it as JSON")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[estimate] KEY=VALUE",
        help="recipe=halo_parity, train.steps=20, recipe.master_dtype=bf16, ...",
    )


def run(args: argparse.Namespace) -> ExitCode:
    from amnesia_bench.cli.output import shortened
    from amnesia_bench.config.messages import nearest
    from amnesia_bench.config.train_schema import load_training

    estimating = args.words[:1] == [ESTIMATE]
    for word in args.words[estimating:]:
        if "=" not in word and not word.startswith("~"):
            raise UserError(
                f"train {shortened(word)}: neither an action nor KEY=VALUE",
                hint=nearest(word, [ESTIMATE]),
            )
    training = load_training(args.config, args.words[1:] if estimating else args.words)
    if estimating:
        return _estimate(training, args)
    for option in ("init", "out", "data"):
        if not getattr(args, option):
            raise UserError(f"--{option} is missing", hint="amnesia train --help shows a command.")
    try:
        return _train(training, args)
    except AmnesiaError as error:
        if os.environ.get("RANK", "0") == "0":
            raise
        return error.exit_code  # the first process says it for all


def _train(training: TrainingRun, args: argparse.Namespace) -> ExitCode:
    try:
        from amnesia_bench.training.run import TrainingJob, train
    except ImportError as error:
        raise MissingEnvironmentError(
            f"train needs torch and transformers ({error}).",
            hint='pip install "amnesia-bench[train]"',
        ) from error
    from amnesia_bench.data import SampleOrder, open_store
    from amnesia_bench.tokenizers.data_tokenizer import load_tokenizer
    from amnesia_bench.weights.checkpoint import open_checkpoint

    open_checkpoint(args.init)  # an adapter has no tokenizer, which is not what is wrong with it
    mixture = training.train.mixture
    data = _sources(args.data, list(mixture))
    stores = {name: open_store(folder) for name, folder in data.items()}
    sizes = [store.num_sequences for store in stores.values()]
    weights = [mixture[name] for name in stores]
    return train(
        TrainingJob(
            run=training,
            init=args.init,
            teacher=args.teacher,
            data=data,
            stores=stores,
            order=SampleOrder(sizes, weights, training.train.seed),
            tokenizer_sha256=load_tokenizer(args.init).sha256,
            out=args.out,
        )
    )


def _sources(given: list[str], names: list[str]) -> dict[str, Path]:
    """Return the folder of each source, in the order of the mixture."""
    folders = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals and len(names) == 1:
            name, folder = names[0], text
        if name not in names or not folder or name in folders:
            raise UserError(
                f"--data {text}: expected NAME=FOLDER, once for each of {', '.join(names)}"
            )
        folders[name] = Path(folder)
    missing = [name for name in names if name not in folders]
    if missing:
        raise UserError(f"--data {missing[0]}=FOLDER is missing")
    return {name: folders[name] for name in names}


def _estimate(training: TrainingRun, args: argparse.Namespace) -> ExitCode:
    from amnesia_bench.cli.output import print_json, say, show, size, table
    from amnesia_bench.costs.estimate import GPUS, estimate
    from amnesia_bench.costs.model_shape import named_shape, shape_of
    from amnesia_bench.weights.checkpoint import open_checkpoint

    if args.init is not None:
        shape = shape_of(open_checkpoint(args.init).config)
    elif training.train.model is not None:
        shape = named_shape(training.train.model)
    else:
        raise UserError(
            f"{args.config} names no model: --init is missing",
            hint="Give the folder of the checkpoint to begin with.",
        )
    gpu = GPUS[args.gpu]
    found = estimate(training, shape, args.processes, gpu)
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
