r"""Evaluate the recall of a checkpoint with lm-evaluation-harness and our inference engines.

  amnesia eval niah --checkpoint DIR --prompts PROMPTS --lengths 32768,262144 --out OUT
  amnesia eval niah --checkpoint DIR --official-data --lengths 32768 --out OUT

--prompts is a folder that `amnesia niah build` wrote; its prompts are byte for byte equal to those
of lm-eval's own generator. With --official-data, lm-eval generates the prompts, which takes minutes
per length and requires downloads from the hub. In both cases, lm-eval runs the requests and scores
the answers. The results of each task and length are in a subfolder of OUT. To resume an interrupted
run, run the same command again. Several GPUs or machines can each answer a part of the prompts
(--part 1/2, --part 2/2); the same command with --merge DIR --merge DIR then scores them. To use our
engines from lm-eval's own command line, run

  python -m amnesia_bench.lm_eval_bridge --model amnesia --model_args pretrained=DIR ...
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.command import Subcommand
from amnesia_bench.cli.division_options import add_division_arguments, division_of
from amnesia_bench.cli.engine_options import engine_choice
from amnesia_bench.cli.niah_options import add_prompt_arguments, prompt_fields
from amnesia_bench.cli.output import print_json, say, show, table
from amnesia_bench.cli.progress import TerminalProgress, hide_library_bars
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode
from amnesia_bench.records.codec import to_json
from amnesia_bench.records.evaluation import Cell
from amnesia_bench.requests.recall import EvaluateRequest


def _add_niah_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = amnesia_bench.load_niah()
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompts", type=Path, help="folder that `amnesia niah build` wrote")
    source.add_argument(
        "--official-data", action="store_true", help="generate the prompts with lm-eval"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for answers and scores")
    parser.add_argument("--method", default="", help="label of the row in a table: +QK-Restore")
    add_prompt_arguments(parser, defaults, "--official-data")
    add_division_arguments(parser)
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        help=f"maximum tokens per answer ({defaults.max_new_tokens}, as in lm-eval)",
    )
    parser.add_argument(
        "--verify-prefix",
        type=int,
        default=0,
        metavar="N",
        help="recompute N answers without a shared prefix, and compare them (0)",
    )
    parser.add_argument("--json", action="store_true", help="print the cells as JSON")


def _niah(args: argparse.Namespace) -> ExitCode:
    request = make(
        EvaluateRequest,
        checkpoint=args.checkpoint,
        prompts=args.prompts,
        max_new_tokens=args.max_new_tokens,
        method=args.method,
        engine=engine_choice(args),
        verify_prefix=args.verify_prefix,
        division=division_of(args),
        **prompt_fields(args),
    )
    hide_library_bars()
    with TerminalProgress() as progress:
        cells = amnesia_bench.evaluate(
            request, args.out, progress=progress.say, count=progress.count
        )
    if args.json:
        print_json(to_json(cells))
    elif args.part is not None:
        say(
            f"{args.out}: part {args.part}. When all parts are done, run the same command with "
            f"--merge {args.out}"
        )
    else:
        _print(cells, args)
    return ExitCode.DONE


def _print(cells: Sequence[Cell], args: argparse.Namespace) -> None:
    grid = table(str(args.checkpoint), ("task", "length", "recall in %", "95 % interval", "n"))
    for cell in cells:
        assert cell.value is not None
        assert cell.interval is not None
        low, high = 100 * cell.interval.low, 100 * cell.interval.high
        length, recall = f"{cell.context_tokens:,}", f"{100 * cell.value:.1f}"
        grid.add_row(cell.task, length, recall, f"{low:.1f} - {high:.1f}", str(cell.n))
    show(grid)
    say(f"Answers and scores: {args.out}")


SUBCOMMANDS: Mapping[str, Subcommand] = {
    "niah": Subcommand("evaluate on needle-in-a-haystack prompts", _add_niah_arguments, _niah)
}
