"""Show the state of the stages in a store, including stages that run on other machines.

  amnesia status
  amnesia status experiment=table1 profile=tiny

Without an experiment, the command shows every stage that was ever started in the store. A stage is
done if the folder of its artifact contains a manifest. A finished stage is stale if its inputs have
changed since it was run. Jobs in SLURM's queue are shown with their state, and with the reason why
they wait.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from amnesia_bench.cli.output import print_json, say, show, table, tell
from amnesia_bench.errors import ExitCode
from amnesia_bench.pipeline.adopted import needed_stages
from amnesia_bench.pipeline.bookkeeping import StageState
from amnesia_bench.pipeline.experiments import graphs_of
from amnesia_bench.pipeline.graph import stages_of
from amnesia_bench.pipeline.specs import older_note
from amnesia_bench.pipeline.status import status_of_graph, status_of_store
from amnesia_bench.printable import counted
from amnesia_bench.store.layout import store_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="an experiment, as for `amnesia run`"
    )
    parser.add_argument(
        "--store", type=Path, help="folder of all artifacts (default: $AMNESIA_STORE)"
    )
    parser.add_argument("--json", action="store_true", help="print the states as JSON")


def run(args: argparse.Namespace) -> ExitCode:
    store = store_of(args.store)
    if args.overrides:
        graph = needed_stages(store, stages_of(graphs_of(args.overrides)))
        stages = status_of_graph(store, graph)
    else:
        stages = status_of_store(store)
    if args.json:
        print_json([stage.__dict__ for stage in stages])
        return ExitCode.DONE
    grid = table(str(store), ("stage", "state", "process or job", "last log line"), left=4)
    for stage in stages:
        if stage.holder or stage.state in (StageState.FAILED, StageState.STALE):
            grid.add_row(stage.id, stage.state, stage.holder, stage.said)
    if grid.row_count:
        show(grid)
    counts = {state: sum(stage.state is state for stage in stages) for state in StageState}
    listed = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    say(f"{counted(len(stages), 'stage')}: {listed or 'none yet'}.")
    if (note := older_note(store)) is not None:
        tell(f"note: {note}")
    return ExitCode.DONE
