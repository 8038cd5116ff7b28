"""Copy the finished stages, table rows and reports of an experiment to W&B or trackio.

  amnesia track experiment=table1 tracking=wandb
  amnesia track experiment=table1 tracking=trackio tracking.project=mine

The store remains the record of an experiment, so this can be done at any time, and again: runs that
have not changed are skipped. `amnesia run ... tracking=wandb` does it while it runs.

W&B is online if there is an API key (WANDB_API_KEY or `wandb login`), and offline otherwise;
offline runs can be uploaded with `wandb sync`. trackio needs neither an account nor a network;
`trackio show --project amnesia` opens its dashboard.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import say
from amnesia_bench.errors import ExitCode
from amnesia_bench.printable import counted
from amnesia_bench.requests.experiments import TrackRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="experiments, as for `amnesia run`"
    )
    parser.add_argument(
        "--store", type=Path, help="folder of all artifacts (default: $AMNESIA_STORE)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="folder of the reports (default: results)"
    )


def run(args: argparse.Namespace) -> ExitCode:
    result = amnesia_bench.track(
        TrackRequest(overrides=tuple(args.overrides), store=args.store, results=args.out)
    )
    say(
        f"{counted(result.published, 'run')} published to {result.where}, {result.unchanged} "
        f"unchanged, {result.failed} failed."
    )
    if not (result.published or result.unchanged or result.failed):
        say("The store has no finished stage of these experiments yet.")
        return ExitCode.DONE
    say(result.view)
    return ExitCode.ENVIRONMENT if result.failed else ExitCode.DONE
