r"""Lay measured cells out in the paper's tables, next to the paper's numbers, on one page.

  amnesia report --table table1 --out results --cells HypeNet-2B=checks/3f2a
  amnesia report --table table1 --table table2 --out results --cells HypeNet-5B/pre=eval/pre \
      --cells HypeNet-5B/post@miromind=eval/a --cells HypeNet-5B/post@tulu3=eval/b

--cells takes what `check`, `eval` and `score` wrote. A label says what the cells are of, from the
left as far as needed; without it the names in the cells count:

  MODEL/METHOD@SFT/SEED=DIR

METHOD is a row of the table: pre, post, restored, q, ... @SFT says after which fine-tune: a table
takes the cells of its own (`sft` in its file) and of those that its rows name. It may be left out
where all the tables asked for are of the same; `pre` comes before any and goes into all. Seeds are
pooled. Tables are configs of configs/report, or files of your own by their path. Writes Markdown,
CSV, LaTeX and JSON of each table, the figures as SVG, and report.html with all of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from amnesia_bench.errors import ExitCode

if TYPE_CHECKING:
    from amnesia_bench.records.report import Report
    from amnesia_bench.report.building import ReportRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--table",
        action="append",
        required=True,
        metavar="TABLE",
        help="a name of configs/report (table1, table10, tiny_table1) or path/to/mine.yaml; may be "
        "given many times",
    )
    parser.add_argument(
        "--cells",
        action="append",
        default=[],
        metavar="[LABEL=]DIR",
        help="folder of cells, of MODEL/METHOD@SFT/SEED; may be given many times",
    )
    parser.add_argument(
        "--drift",
        action="append",
        default=[],
        metavar="[LABEL=]FILE",
        help="a restoration.json, or what `amnesia diff PRE POST --json` printed",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="change a value of every table: report.models=[tiny], report.recall.lengths=[1024]",
    )


def run(args: argparse.Namespace) -> ExitCode:
    from amnesia_bench.report.building import ReportRequest
    from amnesia_bench.report.sources import parse_source

    write(
        ReportRequest(
            tables=tuple(dict.fromkeys(args.table)),
            sources=tuple(parse_source(text) for text in args.cells),
            out=args.out,
            overrides=tuple(args.overrides),
            drift=tuple(args.drift),
        )
    )
    return ExitCode.DONE


def write(request: ReportRequest) -> tuple[Path, ...]:
    """Write a report, print what it shows, and return its files."""
    from amnesia_bench.pipeline.producers import check_columns
    from amnesia_bench.report.building import build_report, load_table, write_report
    from amnesia_bench.store.provenance import collect_provenance

    for name in request.tables:
        check_columns(name, load_table(name, request.overrides))
    report = build_report(request, collect_provenance(["amnesia", *sys.argv[1:]], seeds={}))
    written = write_report(report, request.out)
    _print(report, written[-1])
    return written


def _print(report: Report, written: Path) -> None:
    from amnesia_bench.cli.output import say, show, table, tell
    from amnesia_bench.report.wording import summary

    # The tables themselves are wider than a terminal; they are in the files.
    notes = list(report.notes)
    for each in report.tables:
        grid = table(each.table.title, ("claim", "ours", "the paper's own numbers"), left=3)
        for claim in each.claims:
            grid.add_row(claim.text, str(claim.verdict), claim.in_paper)
        if each.claims:
            show(grid)
        say(f"{each.table.name}: {summary(each)}")
        notes += each.notes
    for note in dict.fromkeys(notes):
        tell(f"note: {note}")
    say(f"Report: {written}")
