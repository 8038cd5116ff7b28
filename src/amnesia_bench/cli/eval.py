r"""Evaluate a checkpoint by the official code: lm-evaluation-harness, with our engines behind it.

  amnesia eval niah --checkpoint DIR --prompts PROMPTS --lengths 32768,262144 --out OUT
  amnesia eval niah --checkpoint DIR --official-data --lengths 32768 --out OUT

Prompts are those of `amnesia niah build`, byte for byte what lm-eval's generator makes; with
--official-data lm-eval makes them itself, which takes minutes per length and the hub. Either way
lm-eval asks and scores. Each task and length gets a folder in OUT; a run that was killed goes on
where it stopped when the same command is given again. lm-eval's own command line with our model
in it: python -m amnesia_bench.evals.lm_eval_bridge --model amnesia --model_args pretrained=DIR ...
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from amnesia_bench.cli.niah_options import TASKS, lengths_of, tasks_of
from amnesia_bench.errors import ExitCode, MissingEnvironmentError, UserError

if TYPE_CHECKING:
    from amnesia_bench.records.evaluation import Cell

LENGTHS = "32768,65536,131072,262144"
SAMPLES = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("benchmark", choices=("niah",), help="which one")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompts", type=Path, help="folder that `amnesia niah build` wrote")
    source.add_argument(
        "--official-data", action="store_true", help="let lm-eval make the prompts"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for answers and scores")
    parser.add_argument("--lengths", default=LENGTHS, help=f"in tokens ({LENGTHS})")
    parser.add_argument("--tasks", default=TASKS, help=f"({TASKS})")
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, help=f"prompts per task and length ({SAMPLES})"
    )
    parser.add_argument("--engine", default="transformers", help="what runs it (transformers)")
    parser.add_argument(
        "--max-context-tokens", type=int, help="in place of the limit in the model's config"
    )
    parser.add_argument(
        "--verify-prefix",
        type=int,
        default=0,
        metavar="N",
        help="answer N samples a second time without a shared prefix, and compare (0)",
    )
    parser.add_argument("--json", action="store_true", help="print the cells as JSON")


def run(args: argparse.Namespace) -> ExitCode:
    tasks, lengths = tasks_of(args.tasks), lengths_of(args.lengths)
    if args.samples < 1:
        raise UserError(f"--samples {args.samples}: must be at least 1")
    try:
        from amnesia_bench.evals.check_inputs import open_candidates, open_cells_of
        from amnesia_bench.evals.engines.opening import open_engine
        from amnesia_bench.evals.engines.options import EngineOptions
        from amnesia_bench.evals.lm_eval_bridge.evaluation import NiahEvaluation
    except ImportError as error:
        raise MissingEnvironmentError(
            f"eval needs lm-eval, torch and transformers ({error}).",
            hint='pip install "amnesia-bench[eval]"',
        ) from error
    options = EngineOptions(
        max_context_tokens=args.max_context_tokens, verify_prefix=args.verify_prefix
    )
    (candidate,), tokenizer = open_candidates({"checkpoint": args.checkpoint})
    prompts = ()
    if args.prompts is not None:
        prompts = open_cells_of(args.prompts, tokenizer, tasks, lengths, args.samples)
    engine = open_engine(args.engine, args.checkpoint, options)
    evaluation = NiahEvaluation(engine, tokenizer, candidate, args.samples, args.out)
    if args.prompts is not None:
        cells = [evaluation.cell(cell) for cell in prompts]
    else:
        cells = [evaluation.official(task, length) for length in lengths for task in tasks]
    _print(cells, args)
    return ExitCode.DONE


def _print(cells: Sequence[Cell], args: argparse.Namespace) -> None:
    from amnesia_bench.cli.output import console, print_json, say, table
    from amnesia_bench.records.codec import to_json

    if args.json:
        print_json(to_json(cells))
        return
    grid = table(str(args.checkpoint), ("task", "length", "recall in %", "95 % interval", "n"))
    for cell in cells:
        assert cell.value is not None
        assert cell.interval is not None
        low, high = 100 * cell.interval.low, 100 * cell.interval.high
        length, recall = f"{cell.context_tokens:,}", f"{100 * cell.value:.1f}"
        grid.add_row(cell.task, length, recall, f"{low:.1f} - {high:.1f}", str(cell.n))
    console().print(grid)
    say(f"Answers and scores: {args.out}")
