"""Remove the stages of an experiment from a store, with all they wrote.

  amnesia clean experiment=table1 profile=tiny
  amnesia clean experiment=table1 profile=tiny --yes

Says what would go; --yes removes it. A stage that another experiment shares goes too, and is made
anew when that is run. Stages that are being worked on stay, and what these read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from amnesia_bench.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="+", metavar="KEY=VALUE", help="as of `amnesia run`")
    parser.add_argument("--store", type=Path, help="folder of all artifacts ($AMNESIA_STORE)")
    parser.add_argument("--yes", action="store_true", help="remove them")


def run(args: argparse.Namespace) -> ExitCode:
    from amnesia_bench.cli.output import say, show, size, table
    from amnesia_bench.config.experiment_schema import load_jobs
    from amnesia_bench.pipeline.bookkeeping import bytes_of, removable, remove
    from amnesia_bench.pipeline.graph import build, stages_of
    from amnesia_bench.store.layout import store_root

    store = args.store or store_root()
    stages = removable(store, stages_of(build(job) for job in load_jobs(args.overrides)))
    grid = table(str(store), ("stage", "kind", "size"), left=2)
    total = 0
    for stage in stages:
        taken = bytes_of(store, stage)
        total += taken
        grid.add_row(stage.id, stage.kind, size(taken))
        if args.yes:
            remove(store, stage)
    if stages:
        show(grid)
    done = "removed" if args.yes else "would be removed; --yes removes them"
    say(f"{len(stages)} stages, {size(total)}: {done}.")
    return ExitCode.DONE
