"""Options that divide the answers of a run among several processes."""

from __future__ import annotations

import argparse
from pathlib import Path

from amnesia_bench.cli.output import shortened
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import UserError
from amnesia_bench.requests.answering import AnswerPart, MergedParts


def add_division_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that generate or merge parts of the answers."""
    division = parser.add_mutually_exclusive_group()
    division.add_argument(
        "--part",
        metavar="I/N",
        help="generate only part I of N, for example on another GPU; --merge collects the parts",
    )
    division.add_argument(
        "--merge",
        action="append",
        type=Path,
        metavar="DIR",
        help="collect the answers of a finished part instead of generating answers; repeat the "
        "option for every part",
    )


def division_of(args: argparse.Namespace) -> AnswerPart | MergedParts | None:
    """Return the division of the answers that these options specify.

    Raises:
        UserError: --part is not I/N, or there is no such part.
    """
    if args.merge is not None:
        return MergedParts(folders=tuple(args.merge))
    if args.part is None:
        return None
    index, _, count = args.part.partition("/")
    if not (index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
        raise UserError(f"--part {shortened(args.part)!r}: not I/N", hint="--part 2/4")
    return make(
        AnswerPart,
        dict.fromkeys(("", "index", "count"), "--part"),
        index=int(index),
        count=int(count),
    )
