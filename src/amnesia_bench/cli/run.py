"""Run an experiment: every stage that it needs and that is not done yet, then its report.

  amnesia run experiment=table1
  amnesia run experiment=table1,table4 profile=tiny profile.seeds=[0,1,2]
  amnesia run experiment=table4 restore=qk,qk_blend,qk_low_rank

Several values after a key are several jobs; what they share is done once. The same command resumes
a run that was killed, and does nothing where all is done. `amnesia plan` shows what there is to do,
`amnesia status` how far it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli import report
from amnesia_bench.cli.output import say
from amnesia_bench.errors import ExitCode
from amnesia_bench.requests.experiments import RunRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what to run; see above")
    parser.add_argument(
        "--store", type=Path, help="folder of all artifacts (default: $AMNESIA_STORE)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="folder of reports (default: results)"
    )
    parser.add_argument(
        "--repair", action="store_true", help="remove damaged artifacts and make them again"
    )


def run(args: argparse.Namespace) -> ExitCode:
    result = amnesia_bench.run(
        RunRequest(
            overrides=tuple(args.overrides),
            store=args.store,
            results=args.out,
            repair=args.repair,
        )
    )
    outcome = result.outcome
    others = f", {outcome.by_others} by other runs meanwhile" if outcome.by_others else ""
    stages = outcome.cached + outcome.done + outcome.by_others
    say(f"{stages} stages: {outcome.cached} were done, {outcome.done} done now{others}.")
    for page in result.pages:
        if page.report is None:
            say(f"Report: {page.out}, as it was.")
            continue
        if page.edited:
            names = ", ".join(page.edited)
            say(f"Changed or removed since they were written: {names}. Written again:")
        report.print_report(page.report, page.files[-1])
    return ExitCode.DONE
