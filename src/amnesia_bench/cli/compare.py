r"""Compare two evaluations of the same tasks, sample by sample.

  amnesia compare answers/sft answers/restored
  amnesia compare logs/before logs/after --out comparison
  amnesia compare before.eval after.eval

A and B are folders or files of samples that lm-eval logged (--log_samples), logs of inspect_ai
(.eval or .json), or folders that `amnesia eval niah` or `amnesia score` wrote. Samples are paired
by their content. Differences are B minus A. The exit code is 3 if B is worse in any row, and 0 if
no loss is shown; the table states which loss could have been shown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import print_json, say, show, table
from amnesia_bench.cli.requests import make
from amnesia_bench.comparison.summary import (
    COLUMNS,
    LEFT_COLUMNS,
    comparison_headline,
    comparison_notes,
    comparison_row,
)
from amnesia_bench.errors import ExitCode
from amnesia_bench.records.codec import to_json
from amnesia_bench.records.comparison import ComparisonReport
from amnesia_bench.requests.comparison import CompareRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="the first evaluation (the baseline)")
    parser.add_argument("b", type=Path, metavar="B", help="the second evaluation")
    parser.add_argument(
        "--common-only",
        action="store_true",
        help="compare the samples and tasks that both contain, and list the rest",
    )
    parser.add_argument(
        "--different-prompts",
        action="store_true",
        help="accept that A and B asked the same samples with different prompts",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="DIR",
        help="new folder for the report as JSON and Markdown",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> ExitCode:
    request = make(
        CompareRequest,
        {"a": "A", "b": "B"},
        a=args.a,
        b=args.b,
        common_only=args.common_only,
        different_prompts=args.different_prompts,
    )
    report = amnesia_bench.compare(request, out=args.out)
    if args.json:
        print_json(to_json(report))
    else:
        _print(report, args)
    return ExitCode.REGRESSION if report.worse else ExitCode.DONE


def _print(report: ComparisonReport, args: argparse.Namespace) -> None:
    grid = table(f"A: {args.a}\nB: {args.b}", COLUMNS, left=LEFT_COLUMNS)
    for row in report.rows:
        grid.add_row(*comparison_row(row))
    show(grid)
    for note in comparison_notes(report):
        say(note)
    if args.out is not None:
        say(f"Report: {args.out}")
    say(f"{comparison_headline(report)}.")
