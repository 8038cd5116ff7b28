r"""Fill the paper's tables with measured cells, next to the paper's numbers, on one page.

  amnesia report --table table1 --out results --cells HypeNet-2B=checks/3f2a
  amnesia report --table table1 --table table2 --out results --cells HypeNet-5B/pre=eval/pre \
      --cells HypeNet-5B/post@miromind=eval/a --cells HypeNet-5B/post@tulu3=eval/b

--cells is a folder that `check`, `eval` or `score` wrote, with an optional label. The label states
the model, method, fine-tune and seed of the cells; parts on the right can be omitted. Without
a label, the names in the cells are used:

  MODEL/METHOD@SFT/SEED=DIR

METHOD is a row of the table, for example pre, post, restored or q. @SFT is the name of the
fine-tune; a table uses the cells of its own fine-tune (`sft` in its config) and of the fine-tunes
that the names of its rows contain. @SFT is optional if all requested tables have the same
fine-tune. `pre` has no fine-tune and is used in all tables. The cells of several seeds are pooled.
The command writes each table as Markdown, CSV, LaTeX and JSON, the figures as SVG, and a page
report.html with all tables and figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import say, show, table, tell
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.records.report import Report
from amnesia_bench.reporting.wording import summary
from amnesia_bench.requests.experiments import (
    LabelledAnalysis,
    LabelledCells,
    LabelledDrift,
    ReportRequest,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--table",
        action="append",
        required=True,
        metavar="TABLE",
        help="name of a config in configs/report (table1, table10, tiny_table1), or "
        "path/to/mine.yaml; can be repeated",
    )
    parser.add_argument(
        "--cells",
        action="append",
        default=[],
        metavar="[LABEL=]DIR",
        help="folder of cells and its label, MODEL/METHOD@SFT/SEED; can be repeated",
    )
    parser.add_argument(
        "--drift",
        action="append",
        default=[],
        metavar="[LABEL=]FILE",
        help="restoration.json, or the output of `amnesia diff PRE POST --json`, for the drift "
        "figure; can be repeated",
    )
    parser.add_argument(
        "--analysis",
        action="append",
        default=[],
        metavar="LABEL=DIR",
        help="folder of `amnesia analyze` and its label, MODEL[@SFT][/SEED], for the claims about "
        "the cause; can be repeated",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="override a value of every table: report.models=[tiny], report.recall.lengths=[1024]",
    )


def run(args: argparse.Namespace) -> ExitCode:
    request = make(
        ReportRequest,
        {"tables": "--table", "sources": "--cells"},
        tables=tuple(args.table),
        sources=tuple(parse_cells(text) for text in args.cells),
        overrides=tuple(args.overrides),
        drift=tuple(parse_drift(text) for text in args.drift),
        analyses=tuple(parse_analysis(text) for text in args.analysis),
    )
    written = amnesia_bench.report(request, args.out)
    print_report(written.report, written.files[-1])
    return ExitCode.DONE


def parse_cells(text: str) -> LabelledCells:
    """Parse a value of --cells, which has the form `[MODEL[/METHOD[@SFT][/SEED]]=]DIR`.

    Raises:
        UserError: the label has an empty part, or too many parts.
    """
    label, equals, folder = text.partition("=")
    if not equals or Path(text).exists():
        return LabelledCells(folder=Path(text))
    parts = label.split("/")
    named = [name for part in parts for name in part.split("@")]
    if not folder or not all(named) or len(parts) > 3:
        raise UserError(
            f"{text}: expected DIR, or MODEL/METHOD@SFT/SEED=DIR",
            hint="For example HypeNet-5B/restored@tulu3=results/qk; parts on the right are "
            "optional.",
        )
    model, method, seed = (*parts, None, None)[:3]
    return LabelledCells(folder=Path(folder), model=model, method=method, seed=seed)


def parse_analysis(text: str) -> LabelledAnalysis:
    """Parse a value of --analysis, which has the form `MODEL[@SFT][/SEED]=DIR`.

    Raises:
        UserError: the model or the folder is missing.
    """
    label, _, folder = text.partition("=")
    row, _, seed = label.partition("/")
    model, _, finetune = row.partition("@")
    if not model or not folder:
        raise UserError(
            f"{text}: expected MODEL@SFT/SEED=DIR",
            hint="For example HypeNet-5B@miromind=maps; @SFT and /SEED are optional.",
        )
    return LabelledAnalysis(
        folder=Path(folder), model=model, finetune=finetune or None, seed=seed or "0"
    )


def parse_drift(text: str) -> LabelledDrift:
    """Parse a value of --drift, which has the form `[LABEL=]FILE`."""
    label, equals, file = text.partition("=")
    if not equals or Path(text).exists():
        return LabelledDrift(file=Path(text))
    return LabelledDrift(file=Path(file), label=label)


def print_report(report: Report, page: Path) -> None:
    """Print the claims of a report with their verdicts, and the path of its page."""
    # The tables are not printed because they are wider than a terminal; the files contain them.
    notes = list(report.notes)
    if report.causes is not None and report.causes.claims:
        grid = table("Why recall is lost", ("claim", "our numbers"), left=2)
        for cause in report.causes.claims:
            grid.add_row(cause.text, str(cause.verdict))
        show(grid)
    for filled in report.tables:
        grid = table(filled.table.title, ("claim", "our numbers", "the paper's numbers"), left=3)
        for claim in filled.claims:
            grid.add_row(claim.text, str(claim.verdict), claim.in_paper)
        if filled.claims:
            show(grid)
        say(f"{filled.table.name}: {summary(filled)}")
        notes += filled.notes
    for note in dict.fromkeys(notes):
        tell(f"note: {note}")
    say(f"Report: {page}")
