"""Cancel the SLURM jobs of a store, or only those of some experiments.

  amnesia cancel
  amnesia cancel experiment=table1 profile=paper

Running stages save their state if SLURM gives them time to. `amnesia run` resumes them. An `amnesia
run` that waits for the jobs ends. Jobs of other stores and of other users are not cancelled.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import say, tell
from amnesia_bench.errors import ExitCode
from amnesia_bench.requests.experiments import CancelRequest
from amnesia_bench.store.layout import store_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="experiments, as for `amnesia run`"
    )
    parser.add_argument(
        "--store", type=Path, help="folder of all artifacts (default: $AMNESIA_STORE)"
    )


def run(args: argparse.Namespace) -> ExitCode:
    request = CancelRequest(overrides=tuple(args.overrides), store=args.store)
    jobs = amnesia_bench.cancel(request)
    for job in jobs:
        say(f"{job.stage}: {job.shown}")
    say(f"Cancelled jobs: {len(jobs)}.")
    if not jobs:
        tell(f"The queue has no job of yours for {store_of(args.store)}.")
    return ExitCode.DONE
