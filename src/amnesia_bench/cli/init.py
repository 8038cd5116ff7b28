"""Make a model that has learned nothing yet, to be pretrained with `amnesia train`.

amnesia init --model qwen3_laptop --tokenizer TOKENIZER --seed 0 --out teacher0
"""

from __future__ import annotations

import argparse
from pathlib import Path

from amnesia_bench.errors import ExitCode, MissingEnvironmentError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="a name of configs/model, or path/to/mine.yaml"
    )
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder of its tokenizer (tokenizer.json)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights (0)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> ExitCode:
    from amnesia_bench.cli.output import say

    try:
        from amnesia_bench.conversion.initialization import initialize
    except ImportError as error:
        raise MissingEnvironmentError(
            f"init needs torch and transformers ({error}).",
            hint='pip install "amnesia-bench[train]"',
        ) from error
    parameters = initialize(args.model, args.tokenizer, args.seed, args.out)
    say(f"{args.out}: {args.model}, {parameters / 1e6:.2f} M parameters, random")
    return ExitCode.DONE
