"""Remove the stages of an experiment and their artifacts from a store.

  amnesia clean experiment=table1 profile=tiny
  amnesia clean experiment=table1 profile=tiny --yes
  amnesia clean --earlier-versions --yes

Without --yes the command only lists the stages and their sizes. Stages that other experiments share
are removed as well, and those experiments must rebuild them. Running stages and their inputs are
kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from amnesia_bench.cli.output import say, show, size, table
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.pipeline.bookkeeping import bytes_of, removable, remove
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.graph import stages_of
from amnesia_bench.pipeline.specs import OlderStage, older_stages
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.store.layout import store_root


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="an experiment, as for `amnesia run`"
    )
    parser.add_argument(
        "--earlier-versions",
        action="store_true",
        help="remove stages of earlier versions, which used other stage ids",
    )
    parser.add_argument(
        "--store", type=Path, help="folder of all artifacts (default: $AMNESIA_STORE)"
    )
    parser.add_argument("--yes", action="store_true", help="remove the stages, not only list them")


def run(args: argparse.Namespace) -> ExitCode:
    store = args.store or store_root()
    if bool(args.overrides) == args.earlier_versions:
        raise UserError(
            "give either an experiment or --earlier-versions",
            hint="amnesia clean experiment=table1",
        )
    stages: Sequence[Stage | OlderStage]
    if args.earlier_versions:
        stages = older_stages(store)
    else:
        stages = removable(store, stages_of(graphs_of(args.overrides)))
    grid = table(str(store), ("stage", "size"), left=1)
    total = 0
    for stage in stages:
        num_bytes = bytes_of(store, stage)
        total += num_bytes
        grid.add_row(stage.id, size(num_bytes))
        if args.yes:
            remove(store, stage)
    if stages:
        show(grid)
    done = "removed" if args.yes else "would be removed; --yes removes them"
    say(f"{len(stages)} stages, {size(total)}: {done}.")
    return ExitCode.DONE
