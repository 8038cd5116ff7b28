r"""Rank the softmax layers of a model by what retrieval loses without them (Appendix M).

  amnesia rank-layers --checkpoint Qwen2.5-3B --out ranking.json
  amnesia restore --pre Qwen2.5-3B --post FINETUNE --layers top9@ranking.json --out REPAIRED

A layer's importance is the mean accuracy on FDA, SWDE and Ruler-QA-SQuAD of the whole model less
that of the model without the layer: its attention adds nothing, in memory and never on disk. The
paper's formula is lost in the text we have; this is our reading. A ranking that was killed goes on
with the next layer when the same command is given again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from amnesia_bench.errors import ExitCode, MissingEnvironmentError, UserError

if TYPE_CHECKING:
    from amnesia_bench.records.layer_ranking import LayerRanking

TASKS = "fda,swde,ruler_qa_squad"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--tasks", default=TASKS, help=f"({TASKS})")
    parser.add_argument("--samples", type=int, help="documents of each task at most (all)")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with fda.jsonl, swde.jsonl, dev-v2.0.json; else they are fetched",
    )


def run(args: argparse.Namespace) -> ExitCode:
    from amnesia_bench.cli.progress import TerminalProgress

    if args.samples is not None and args.samples < 1:
        raise UserError(f"--samples {args.samples}: must be at least 1")
    progress = TerminalProgress()
    try:
        from amnesia_bench.lm_eval_bridge.ranking import rank_checkpoint
    except ImportError as error:
        raise MissingEnvironmentError(
            f"rank-layers needs lm-eval, torch and transformers ({error}).",
            hint='pip install "amnesia-bench[eval]"',
        ) from error
    tasks = tuple(dict.fromkeys(task.strip() for task in args.tasks.split(",")))
    ranking = rank_checkpoint(
        args.checkpoint, tasks, args.samples, args.data, args.out, progress.say
    )
    _print(ranking, args.out)
    return ExitCode.DONE


def _print(ranking: LayerRanking, out: Path) -> None:
    from amnesia_bench.cli.output import say, show, table, typed

    columns = list(ranking.accuracy)
    grid = table(ranking.checkpoint.location, ("layer", "importance", *columns))
    for entry in ranking.layers:
        accuracy = (f"{100 * entry.accuracy[name]:.1f}" for name in columns)
        grid.add_row(str(entry.layer), f"{100 * entry.importance:+.2f}", *accuracy)
    whole = (f"{100 * ranking.accuracy[name]:.1f}" for name in columns)
    grid.add_row("none", "", *whole)
    show(grid)
    say(
        "Accuracy in % without each layer; importance: what the mean of the tasks loses, in points."
    )
    say(f"Ablation: {ranking.ablation}.")
    say(f"{out}: restore the first 7 of it by {typed('restore', '--layers', f'top7@{out}')} ...")
