"""Lay measured cells out in one of the paper's tables, next to the paper's numbers.

  amnesia report --table table1 --out results --cells HypeNet-2B=checks/3f2a
  amnesia report --table table1 --out results --cells HypeNet-2B/pre/0=eval/pre ...

--cells takes what `check`, `eval` and `score` wrote. A label says where in the table it belongs:
MODEL/METHOD/SEED=DIR, from the left as far as needed; without it the names in the cells count.
Tables are files of configs/report. Writes Markdown, CSV, LaTeX, JSON and report.html.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from amnesia_bench.errors import ExitCode

if TYPE_CHECKING:
    from amnesia_bench.records.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--table", required=True, help="table1 to table4, table10")
    parser.add_argument(
        "--cells",
        action="append",
        default=[],
        metavar="[LABEL=]DIR",
        help="folder of cells, for MODEL/METHOD/SEED; may be given many times",
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
        help="change a value of the table: report.models=[tiny], report.recall.lengths=[256,1024]",
    )


def run(args: argparse.Namespace) -> ExitCode:
    from amnesia_bench.config.load import load_option
    from amnesia_bench.config.report_schema import TableConfig
    from amnesia_bench.report.building import ReportRequest, build_report, write_report
    from amnesia_bench.report.sources import parse_source
    from amnesia_bench.store.provenance import collect_provenance

    request = ReportRequest(
        name=args.table,
        table=load_option("report", args.table, args.overrides, TableConfig),
        sources=tuple(parse_source(text) for text in args.cells),
        drift=tuple(args.drift),
    )
    provenance = collect_provenance(["amnesia", *sys.argv[1:]], seeds={})
    report = build_report(request, provenance)
    written = write_report(report, args.out)
    _print(report, written)
    return ExitCode.DONE


def _print(report: Report, written: Path) -> None:
    from amnesia_bench.cli.output import say, show, table
    from amnesia_bench.report.wording import summary

    # The table itself is wider than a terminal; it is in the files.
    grid = table(report.table.title, ("claim", "ours", "the paper's own numbers"), left=3)
    for claim in report.claims:
        grid.add_row(claim.text, str(claim.verdict), claim.in_paper)
    show(grid)
    for note in report.notes:
        sys.stderr.write(f"note: {note}\n")
    say(summary(report))
    say(f"Report: {written}")
