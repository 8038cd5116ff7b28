r"""Evaluate a checkpoint by the official code: lm-evaluation-harness, with our engines behind it.

  amnesia eval niah --checkpoint DIR --prompts PROMPTS --lengths 32768,262144 --out OUT
  amnesia eval niah --checkpoint DIR --official-data --lengths 32768 --out OUT

Prompts are those of `amnesia niah build`, byte for byte what lm-eval's generator makes; with
--official-data lm-eval makes them itself, which takes minutes per length and the hub. Either way
lm-eval asks and scores. Each task and length gets a folder in OUT; a run that was killed goes on
where it stopped when the same command is given again. lm-eval's own command line with our model
in it: python -m amnesia_bench.lm_eval_bridge --model amnesia --model_args pretrained=DIR ...
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING

from amnesia_bench.cli.niah_options import add_cell_arguments, chosen_cells, niah_defaults
from amnesia_bench.errors import ExitCode, MissingEnvironmentError, UserError

if TYPE_CHECKING:
    from amnesia_bench.lm_eval_bridge.evaluation import NiahEvaluation
    from amnesia_bench.recall.check_inputs import CellChoice
    from amnesia_bench.recall.measure import Candidate
    from amnesia_bench.records.evaluation import Cell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = niah_defaults()
    parser.add_argument("benchmark", choices=("niah",), help="which one")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompts", type=Path, help="folder that `amnesia niah build` wrote")
    source.add_argument("--official-data", action="store_true", help="let lm-eval make the prompts")
    parser.add_argument("--out", type=Path, required=True, help="folder for answers and scores")
    parser.add_argument("--method", default="", help="the row's label in a table: +QK-Restore")
    add_cell_arguments(parser, defaults, "--official-data")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        help=f"maximum tokens per answer (lm-eval's own {defaults.max_new_tokens})",
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
    from amnesia_bench.cli.output import percent
    from amnesia_bench.cli.progress import Progress

    choice = chosen_cells(args)
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {args.max_new_tokens}: must be at least 1")
    progress = Progress()
    try:
        from amnesia_bench.inference.load_engine import open_engine
        from amnesia_bench.inference.options import EngineOptions
        from amnesia_bench.inference.progress_engine import WatchedEngine
        from amnesia_bench.lm_eval_bridge.evaluation import NiahEvaluation
        from amnesia_bench.recall.check_inputs import open_candidates
    except ImportError as error:
        raise MissingEnvironmentError(
            f"eval needs lm-eval, torch and transformers ({error}).",
            hint='pip install "amnesia-bench[eval]"',
        ) from error
    options = EngineOptions(
        max_context_tokens=args.max_context_tokens,
        verify_prefix=args.verify_prefix,
        attn_logits_scaling=args.attn_logits_scaling,
    )
    (candidate,) = open_candidates({"checkpoint": args.checkpoint})
    candidate = replace(candidate, method=args.method)
    samples, asked = _asked(args, choice, candidate)
    engine = WatchedEngine(open_engine(args.engine, args.checkpoint, options), progress.count)
    longest = args.max_new_tokens or niah_defaults().max_new_tokens
    evaluation = NiahEvaluation(engine, candidate, samples, args.out, longest)
    cells = []
    for name, evaluate in asked:
        progress.say(f"{name}: {samples} prompts")
        cell = evaluate(evaluation)
        cells.append(cell)
        progress.say(f"{name}: recall {percent(cell.value)}")
    _print(cells, args)
    return ExitCode.DONE


def _asked(
    args: argparse.Namespace, choice: CellChoice, candidate: Candidate
) -> tuple[int, list[tuple[str, Callable[[NiahEvaluation], Cell]]]]:
    """Return how many prompts of each cell to ask, and the cells by name."""
    from amnesia_bench.recall.check_inputs import open_cells_of

    if args.prompts is not None:
        held = open_cells_of(args.prompts, [candidate], choice)
        samples = choice.samples or min(map(len, held))
        return samples, [(cell.name, methodcaller("cell", cell)) for cell in held]
    defaults = niah_defaults()
    return choice.samples or defaults.samples, [
        (f"{task}@{length}", methodcaller("official", task, length))
        for length in choice.lengths or defaults.lengths
        for task in choice.tasks or defaults.tasks
    ]


def _print(cells: Sequence[Cell], args: argparse.Namespace) -> None:
    from amnesia_bench.cli.output import print_json, say, show, table
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
    show(grid)
    say(f"Answers and scores: {args.out}")
