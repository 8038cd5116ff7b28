r"""Copy the finished evaluations of experiments from several stores into one without checkpoints.

  amnesia collect --from SEED_100 --from SEED_101 --store EVALUATIONS experiment=table1 \
      profile=gemma profile.seeds=[100,101]
  amnesia run --store EVALUATIONS experiment=table1 profile=gemma profile.seeds=[100,101]

Evaluations are small: cells, answers to needles, verdicts, and what analyses measured. They count
as done in the new store, and need no checkpoint there, so the second command computes only what is
missing, and writes the report of all seeds. A run that starts from a copy of the new store does not
repeat them either.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import say, tell
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode
from amnesia_bench.printable import counted
from amnesia_bench.requests.experiments import CollectRequest

_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="experiments, as for `amnesia run`"
    )
    parser.add_argument(
        "--from",
        dest="sources",
        type=Path,
        action="append",
        required=True,
        metavar="STORE",
        help="a store with finished evaluations; can be repeated",
    )
    parser.add_argument(
        "--store", type=Path, help="store to which they are copied (default: $AMNESIA_STORE)"
    )


def run(args: argparse.Namespace) -> ExitCode:
    request = make(
        CollectRequest,
        {"sources": "--from"},
        overrides=tuple(args.overrides),
        sources=tuple(args.sources),
        store=args.store,
    )
    collected = amnesia_bench.collect(request)
    copied = counted(len(collected.copied), "evaluation")
    say(f"{collected.store}: {copied} copied, {len(collected.present)} were there.")
    if missing := collected.missing:
        tell(f"{counted(len(missing), 'evaluation')} are in none of the stores:")
        for stage in missing[:_SHOWN]:
            tell(f"  {stage}")
    return ExitCode.DONE
