r"""Rank the softmax layers of a model by the retrieval accuracy lost without each (Appendix M).

  amnesia rank-layers --checkpoint Qwen2.5-3B --out ranking.json
  amnesia restore --pre Qwen2.5-3B --post FINETUNE --layers top9@ranking.json --out REPAIRED

The importance of a layer is the mean accuracy of the complete model on FDA, SWDE and Ruler-QA-SQuAD
minus the mean accuracy of the model without the layer. A layer is removed by setting its attention
output to zero, in memory only. The paper's formula is missing from the text that we have, so this
definition is our interpretation. To resume an interrupted ranking, run the same command again:
layers that were already evaluated are skipped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.niah_options import split_list
from amnesia_bench.cli.output import say, show, table, typed
from amnesia_bench.cli.progress import TerminalProgress, hide_library_bars
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode
from amnesia_bench.records.ids import RETRIEVAL_TASKS
from amnesia_bench.records.layer_ranking import LayerRanking
from amnesia_bench.requests.recall import RankLayersRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    tasks = ",".join(RETRIEVAL_TASKS)
    parser.add_argument("--tasks", default=tasks, help=f"retrieval tasks ({tasks})")
    parser.add_argument("--samples", type=int, help="maximum number of documents per task (all)")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with fda.jsonl, swde.jsonl, dev-v2.0.json (default: download them)",
    )


def run(args: argparse.Namespace) -> ExitCode:
    request = make(
        RankLayersRequest,
        checkpoint=args.checkpoint,
        tasks=split_list(args.tasks),
        samples=args.samples,
        data=args.data,
    )
    hide_library_bars()
    with TerminalProgress() as progress:
        ranking = amnesia_bench.rank_layers(request, args.out, progress=progress.say)
    _print(ranking, args.out)
    return ExitCode.DONE


def _print(ranking: LayerRanking, out: Path) -> None:
    columns = list(ranking.accuracy)
    grid = table(ranking.checkpoint.location, ("layer", "importance", *columns))
    for entry in ranking.layers:
        accuracy = (f"{100 * entry.accuracy[name]:.1f}" for name in columns)
        grid.add_row(str(entry.layer), f"{100 * entry.importance:+.2f}", *accuracy)
    whole = (f"{100 * ranking.accuracy[name]:.1f}" for name in columns)
    grid.add_row("none", "", *whole)
    show(grid)
    say(
        "Accuracy without each layer, in per cent. Importance: drop of the mean accuracy without "
        "the layer, in points."
    )
    say(f"Ablation: {ranking.ablation}.")
    say(f"To restore the first 7: {typed('restore', '--layers', f'top7@{out}')} ...")
