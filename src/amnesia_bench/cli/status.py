"""Say how far the stages of a store are, whoever works on them.

  amnesia status
  amnesia status experiment=table1 profile=tiny

Without an experiment it is about every stage that was ever begun. A stage is done when its folder
has a manifest; it is stale when its inputs hold something else than when it was made.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from amnesia_bench.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as of `amnesia run`")
    parser.add_argument("--store", type=Path, help="folder of all artifacts ($AMNESIA_STORE)")
    parser.add_argument("--json", action="store_true", help="print the states as JSON")


def run(args: argparse.Namespace) -> ExitCode:
    from amnesia_bench.cli.output import print_json, say, show, table
    from amnesia_bench.pipeline.bookkeeping import StageState
    from amnesia_bench.pipeline.status import status_of_graph, status_of_store
    from amnesia_bench.store.layout import store_root

    store = (args.store or store_root()).resolve()
    if args.overrides:
        from amnesia_bench.config.experiment_schema import load_jobs
        from amnesia_bench.pipeline.graph import build, stages_of

        found = status_of_graph(store, stages_of(build(job) for job in load_jobs(args.overrides)))
    else:
        found = status_of_store(store)
    if args.json:
        print_json([each.__dict__ for each in found])
        return ExitCode.DONE
    grid = table(str(store), ("stage", "state", "by", "last line of its log"), left=4)
    for each in found:
        if each.state in (StageState.RUNNING, StageState.FAILED, StageState.STALE):
            grid.add_row(each.id, each.state, each.holder, each.said)
    if grid.row_count:
        show(grid)
    counts = {state: sum(each.state is state for each in found) for state in StageState}
    shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    say(f"{len(found)} stages: {shown or 'none yet'}.")
    return ExitCode.DONE
