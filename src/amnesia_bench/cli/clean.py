"""Remove the stages of an experiment and their artifacts from a store.

  amnesia clean experiment=table1 profile=tiny
  amnesia clean experiment=table1 profile=tiny --yes
  amnesia clean --merged-parts --yes
  amnesia clean --earlier-versions --yes

Without --yes the command only lists the stages and their sizes. Stages that other experiments share
are removed as well, and those experiments must rebuild them. Running stages and their inputs are
kept, and so are artifacts that you adopted, unless you add --adopted.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from amnesia_bench.cli.output import say, show, size, table, tell
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.pipeline.adopted import adopted_from
from amnesia_bench.pipeline.bookkeeping import (
    AnyStage,
    bytes_of,
    merged_parts,
    removable,
    remove,
)
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.graph import stages_of
from amnesia_bench.pipeline.specs import older_stages
from amnesia_bench.pipeline.stage import Stage
from amnesia_bench.printable import counted
from amnesia_bench.store.layout import store_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="an experiment, as for `amnesia run`"
    )
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--merged-parts",
        action="store_true",
        help="remove the parts of evaluations whose answers were merged; nothing is rebuilt",
    )
    other.add_argument(
        "--earlier-versions",
        action="store_true",
        help="remove stages of earlier versions, which used other stage ids",
    )
    other.add_argument(
        "--adopted",
        action="store_true",
        help="also remove artifacts of the experiment that you adopted, which no stage can rebuild",
    )
    parser.add_argument(
        "--store", type=Path, help="folder of all artifacts (default: $AMNESIA_STORE)"
    )
    parser.add_argument("--yes", action="store_true", help="remove the stages, not only list them")


def run(args: argparse.Namespace) -> ExitCode:
    store = store_of(args.store)
    if bool(args.overrides) == (args.earlier_versions or args.merged_parts):
        raise UserError(
            "give either an experiment, --merged-parts or --earlier-versions",
            hint="amnesia clean experiment=table1",
        )
    stages: Sequence[AnyStage]
    kept: Sequence[Stage] = ()
    if args.earlier_versions:
        stages = older_stages(store)
    elif args.merged_parts:
        stages = merged_parts(store)
    else:
        own = removable(store, stages_of(graphs_of(args.overrides)))
        kept = [] if args.adopted else [s for s in own if adopted_from(store, s) is not None]
        stages = [stage for stage in own if stage not in kept]
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
    say(f"{counted(len(stages), 'stage')}, {size(total)}: {done}.")
    for stage in kept:
        tell(f"note: {stage.id} was adopted, so it is kept; --adopted removes it")
    return ExitCode.DONE
