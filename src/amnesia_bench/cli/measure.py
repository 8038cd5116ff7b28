r"""Measure what some restore variants need to know about two checkpoints, and write it to a file.

  amnesia measure --pre BASE --post FINETUNE --variant lm_cocktail --data DATA --out M.json
  amnesia restore --pre BASE --post FINETUNE --variant lm_cocktail --measured M.json --out MERGED
  amnesia measure --pre BASE --post FINETUNE --variant qk_layer_fisher --out M.json

lm_cocktail and step_back need the losses of the models on a few texts; --data is a folder that
`amnesia data prepare` wrote, and only trained tokens count. Choose texts of what should not be
lost. layer_fisher needs the Fisher information, which is measured on random tokens. The variants
whose names begin with qk_ restore W_Q and W_K only, all others combine all weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import say, show, table, typed
from amnesia_bench.cli.progress import TerminalProgress, hide_library_bars
from amnesia_bench.cli.requests import make
from amnesia_bench.config.schema import LayerFisher
from amnesia_bench.errors import ExitCode
from amnesia_bench.records.measurement import Measurement
from amnesia_bench.requests.checkpoints import MeasureRequest, RandomTokens

_SAMPLES, _TOKENS = (MeasureRequest.model_fields[name].default for name in ("samples", "tokens"))
_RANDOM = RandomTokens()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pre", type=Path, required=True, help="checkpoint folder before the fine-tune"
    )
    parser.add_argument(
        "--post", type=Path, required=True, help="checkpoint folder after the fine-tune"
    )
    parser.add_argument(
        "--variant", required=True, help="restore variant, as for `amnesia restore`"
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of prepared data")
    parser.add_argument(
        "--samples",
        type=int,
        help=f"number of texts ({_SAMPLES}; {_RANDOM.samples} of random tokens)",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        help=f"maximum number of tokens per text ({_TOKENS}; {_RANDOM.tokens} random tokens)",
    )
    parser.add_argument("--seed", type=int, help="seed of the random tokens (0)")
    parser.add_argument(
        "--cast",
        action="store_true",
        help="round the weights of PRE to the dtype of POST if they differ",
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="override a value of the variant: restore.rule.temperature=1.0",
    )


def run(args: argparse.Namespace) -> ExitCode:
    variant = amnesia_bench.load_variant(args.variant, args.overrides)
    counts = {
        name: value
        for name in ("samples", "tokens", "seed")
        if (value := getattr(args, name)) is not None
    }
    # Without data, the seed and the counts are those of random tokens.
    fisher = isinstance(variant.rule, LayerFisher) or "seed" in counts
    tokens = {"random_tokens": make(RandomTokens, **counts)} if fisher else counts
    request = make(
        MeasureRequest,
        pre=args.pre,
        post=args.post,
        variant=variant,
        data=args.data,
        cast=args.cast,
        **tokens,
    )
    hide_library_bars()
    with TerminalProgress() as progress:
        measurement = amnesia_bench.measure(request, args.out, progress=progress.say)
    _print(measurement)
    options = ("--variant", args.variant, *args.overrides, "--measured", args.out)
    say(f"To use it: {typed('restore', '--pre', args.pre, '--post', args.post, *options)} ...")
    return ExitCode.DONE


def _print(measurement: Measurement) -> None:
    if measurement.fisher:
        grid = table(measurement.data, ("layer", "information in pre", "in post"))
        for entry in measurement.fisher:
            layer = "others" if entry.layer is None else str(entry.layer)
            grid.add_row(layer, f"{entry.pre:.3e}", f"{entry.post:.3e}")
    else:
        grid = table(measurement.data, ("model", "loss in nats per token"))
        grid.add_row("pre", f"{measurement.loss_pre:.4f}")
        for step, loss in enumerate(measurement.losses):
            grid.add_row("post" if not step else f"after step {step}", f"{loss:.4f}")
    show(grid)
