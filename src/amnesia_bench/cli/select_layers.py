r"""Select the layers of a teacher that stay softmax attention in a hybrid, as HALO does.

  amnesia select-layers SCORES --count 7 --out selection.json

SCORES is the folder that `amnesia score-layers` wrote, or any with the output of lm-eval for the
models in which one layer is replaced by its linear mixer: folders layer0, layer1, ... and, for the
original model, `original`, each with result files or logs. With R the mean retrieval accuracy and C
the mean commonsense accuracy, the score of layer l is min(50, (max R - R_l) / (max C - C_l +
1e-10)); the layers with the highest scores stay. With --rule jet_nemotron, the score is R of the
original model minus R_l. `amnesia convert --layers` reads the selection.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.niah_options import split_list
from amnesia_bench.cli.output import say, show, table
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode
from amnesia_bench.records.ids import COMMONSENSE_TASKS, RETRIEVAL_TASKS
from amnesia_bench.records.layer_selection import LayerSelection
from amnesia_bench.requests.checkpoints import SelectLayersRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("scores", type=Path, metavar="SCORES", help="folder of finished scores")
    parser.add_argument("--count", type=int, required=True, help="number of layers to select")
    parser.add_argument("--rule", default="halo", choices=["halo", "jet_nemotron"])
    for name, tasks in (("retrieval", RETRIEVAL_TASKS), ("commonsense", COMMONSENSE_TASKS)):
        default = ",".join(tasks)
        parser.add_argument(f"--{name}", default=default, help=f"{name} tasks ({default})")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")


def run(args: argparse.Namespace) -> ExitCode:
    request = make(
        SelectLayersRequest,
        scores=args.scores,
        count=args.count,
        rule=args.rule,
        retrieval=split_list(args.retrieval),
        commonsense=split_list(args.commonsense),
    )
    selection = amnesia_bench.select_layers(request, args.out)
    _print(selection)
    return ExitCode.DONE


def _print(selection: LayerSelection) -> None:
    grid = table("", ("layer", "score", "retrieval", "commonsense", ""))
    for entry in selection.layers:
        stays = "softmax" if entry.layer in selection.selected else ""
        means = (f"{100 * entry.retrieval:.2f}", f"{100 * entry.commonsense:.2f}")
        grid.add_row(str(entry.layer), f"{entry.score:.4f}", *means, stays)
    if selection.original_retrieval is not None and selection.original_commonsense is not None:
        means = (
            f"{100 * selection.original_retrieval:.2f}",
            f"{100 * selection.original_commonsense:.2f}",
        )
        grid.add_row("none", "", *means, "")
    show(grid)
    say("Mean accuracies, in per cent, of the model in which the layer is replaced.")
    say(f"Softmax layers: {' '.join(map(str, selection.selected))}")
