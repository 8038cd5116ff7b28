"""Fetch all models and data of an experiment from the hub, so that its jobs need no network.

  amnesia fetch experiment=table1
  amnesia fetch experiment=table1,table4 profile=paper --dry-run

Run this on a machine with a network, such as a login node, with the same overrides and store as
`amnesia run`. It lists models, data sets, benchmarks and essays with their sizes and licences, and
then fetches what the store lacks and what unfinished stages need; of large data sets, only the
files that the config selects. Every file is compared with the hash that the hub states.
The manifests in the store record repository, commit, files and hashes, and stages read from there.

If a repository has no pinned revision, its newest commit is fetched and kept: a later call says if
the hub has a newer one. To resume an interrupted call, run the same command again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import plain, print_json, say, show, size, table, tell
from amnesia_bench.errors import ExitCode
from amnesia_bench.pipeline.fetch import FetchItem
from amnesia_bench.printable import counted
from amnesia_bench.requests.experiments import FetchRequest

_COMMIT_DIGITS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="experiments, as for `amnesia run`"
    )
    parser.add_argument(
        "--store", type=Path, help="folder of all artifacts (default: $AMNESIA_STORE)"
    )
    parser.add_argument("--dry-run", action="store_true", help="list what would be fetched")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run(args: argparse.Namespace) -> ExitCode:
    request = FetchRequest(overrides=tuple(args.overrides), store=args.store, dry_run=args.dry_run)
    items = amnesia_bench.fetch(
        request,
        announce=_silent if args.json else _print,
        progress=lambda source: tell(f"fetching {source}"),
    )
    if args.json:
        print_json([plain(item) for item in items])
    elif not args.dry_run:
        say("Everything is in the store.")
    return ExitCode.DONE


def _silent(_: Sequence[FetchItem]) -> None:
    pass


def _print(items: Sequence[FetchItem]) -> None:
    grid = table("models and data", ("source", "for", "licence", "commit", "to fetch"), left=4)
    for item in items:
        commit = (item.commit or "-")[:_COMMIT_DIGITS]
        grid.add_row(item.source, item.use, item.licence or "-", commit, _to_fetch(item))
    if items:
        show(grid)
    missing = [item for item in items if not item.fetched]
    total = size(sum(item.bytes or 0 for item in missing))
    say(f"{counted(len(items), 'source')}, {len(items) - len(missing)} of them fetched before.")
    say(f"To fetch: {total} from {counted(len(missing), 'source')}.")
    for item in items:
        if item.note and item.commit is not None:
            say(f"{item.source}: {item.note}. The commit in the store is kept.")
        elif item.note:
            say(f"{item.source}: {item.note}.")


def _to_fetch(item: FetchItem) -> str:
    if item.fetched:
        return "in the store"
    return "unknown" if item.bytes is None else size(item.bytes)
