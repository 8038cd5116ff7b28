"""Write or push W&B workspaces that compare the table rows of an experiment.

  amnesia dashboard experiment=table1 --out dashboards
  amnesia dashboard experiment=table1 restore=qk,qk_blend,qk_low_rank tracking.entity=TEAM --push

There is one workspace per experiment and model. It shows the rows that `amnesia track` published,
with +SFT as baseline: the columns of the table and their differences from +SFT, recall against
context length, and the trade-off between recall and reasoning. --push replaces the workspace of an
earlier push. For trackio, `amnesia track` prints the address of the same comparison.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import say
from amnesia_bench.errors import ExitCode
from amnesia_bench.requests.experiments import DashboardRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="experiments, as for `amnesia track`"
    )
    parser.add_argument(
        "--store", type=Path, help="folder of all artifacts (default: $AMNESIA_STORE)"
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, help="folder to write the workspaces to, as JSON")
    target.add_argument(
        "--push", action="store_true", help="send the workspaces to W&B; needs an account"
    )


def run(args: argparse.Namespace) -> ExitCode:
    request = DashboardRequest(overrides=tuple(args.overrides), store=args.store)
    for made in amnesia_bench.dashboard(request, args.out):
        say(f"{made.name}: {made.location}")
    return ExitCode.DONE
