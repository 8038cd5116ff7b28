"""Run an experiment: every stage that it needs and that is not done yet, then its report.

  amnesia run experiment=table1
  amnesia run experiment=table1,table4 profile=tiny profile.seeds=[0,1,2]
  amnesia run experiment=table4 restore=qk,qk_blend,qk_low_rank

Several values behind a key are several jobs; what they share is done once. The same command again
goes on where one was killed, and does nothing where all is done. `amnesia plan` shows beforehand
what there is to do, `amnesia status` how far it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="see above")
    parser.add_argument("--store", type=Path, help="folder of all artifacts ($AMNESIA_STORE)")
    parser.add_argument("--out", type=Path, default=Path("results"), help="of reports (results)")
    parser.add_argument(
        "--repair", action="store_true", help="remove damaged artifacts and make them again"
    )


def run(args: argparse.Namespace) -> ExitCode:
    from amnesia_bench.cli import report
    from amnesia_bench.cli.output import say
    from amnesia_bench.config.experiment_schema import load_jobs
    from amnesia_bench.pipeline.graph import build, stages_of
    from amnesia_bench.pipeline.reporting import (
        check_writable,
        edited_files,
        is_current,
        mark_current,
        report_calls,
    )
    from amnesia_bench.pipeline.run import run_graph
    from amnesia_bench.store.layout import store_root

    store = args.store or store_root()
    graphs = [build(job) for job in load_jobs(args.overrides)]
    stages = stages_of(graphs)
    calls = report_calls(graphs, store, args.out)
    for call in calls:
        check_writable(call)
    outcome = run_graph(store, stages, repair=args.repair)
    others = f", {outcome.by_others} by other runs meanwhile" if outcome.by_others else ""
    say(f"{len(stages)} stages: {outcome.cached} were done, {outcome.done} done now{others}.")
    for call in calls:
        if is_current(call):
            say(f"Report: {call.out}, as it was.")
            continue
        if edited := edited_files(call):
            say(f"Changed or removed since they were written: {', '.join(edited)}. Written again:")
        written = amnesia_bench.report(call.request, call.out)
        report.print_report(written.report, written.files[-1])
        mark_current(call, written.files)
    return ExitCode.DONE
