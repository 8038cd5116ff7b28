"""Create a model with random weights, to be pretrained with `amnesia train`.

  amnesia init --model qwen3_laptop --tokenizer TOKENIZER --seed 0 --out teacher0

The shape of the model is that of its config. The tokenizer is copied into the folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import say
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode
from amnesia_bench.requests.checkpoints import InitializeRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="name of a config in configs/model, or path/to/mine.yaml"
    )
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder of its tokenizer (tokenizer.json)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (0)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> ExitCode:
    request = make(
        InitializeRequest,
        model=amnesia_bench.load_model(args.model),
        tokenizer=args.tokenizer,
        seed=args.seed,
    )
    parameters = amnesia_bench.initialize(request, args.out)
    say(f"{args.out}: {args.model} with {parameters / 1e6:.2f} M random parameters")
    return ExitCode.DONE
