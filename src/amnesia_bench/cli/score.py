r"""Score the answers that `amnesia generate` wrote.

  amnesia score answers/sft
  amnesia score answers/sft --scorer flexible --json

For mathematics, the scorer `strict` accepts only the answer in the last \boxed{}; `flexible` also
accepts a number or formula if there is no box. For programs, `strict` judges like LiveCodeBench's
published checker and `lenient` judges like plain Python. Programs run in a sandbox, which
`amnesia sandbox` tests. Results are written to a subfolder scored_SCORER of --out, by default of
the folder of the answers. Scoring needs no GPU and can be repeated. `amnesia compare` compares the
scores of two models problem by problem.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import amnesia_bench
from amnesia_bench.cli.output import print_json, say, show, table, tell
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode
from amnesia_bench.printable import counted
from amnesia_bench.records.codec import to_json
from amnesia_bench.records.evaluation import Interval
from amnesia_bench.requests.reasoning import ScoreRequest

if TYPE_CHECKING:
    from amnesia_bench.reasoning.score import Scored

_LISTED = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="DIR", help="folder that `amnesia generate` wrote"
    )
    parser.add_argument(
        "--scorer", help="strict (default), flexible (mathematics) or lenient (programs)"
    )
    parser.add_argument("--data", type=Path, help="new path of the problems, if they moved")
    parser.add_argument("--out", type=Path, help="folder for the results (default: DIR)")
    parser.add_argument(
        "--unsafe-no-sandbox",
        action="store_true",
        help="run the programs of code tasks without a sandbox, with all your permissions",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of programs to run in parallel (default: one per CPU core)",
    )
    parser.add_argument("--json", action="store_true", help="print the cells as JSON")


def run(args: argparse.Namespace) -> ExitCode:
    request = make(
        ScoreRequest,
        answers=args.folder,
        scorer=args.scorer,
        data=args.data,
        unsafe_no_sandbox=args.unsafe_no_sandbox,
        workers=args.workers,
    )
    scored = amnesia_bench.score(request, args.out)
    if args.json:
        print_json({"cells": to_json(scored.cells)})
        return ExitCode.DONE
    _print_cells(scored)
    return ExitCode.DONE


def _print_cells(scored: Scored) -> None:
    run = scored.run
    title = f"{run.task}, {scored.scorer}: {run.model} {run.method}".rstrip()
    grid = table(title, ("metric", "value", "std. error", "95 % interval", "problems"))
    for cell in scored.cells:
        if cell.value is None:
            continue
        # Metrics are fractions and are printed in per cent, except token counts.
        scale = 1.0 if cell.metric.endswith("_tokens") else 100.0
        error = "-" if cell.stderr is None else f"{scale * cell.stderr:.1f}"
        interval = _interval(cell.interval, scale)
        grid.add_row(cell.metric, f"{scale * cell.value:.1f}", error, interval, f"{cell.n:,}")
    outcomes = ", ".join(f"{count:,} {kind.value}" for kind, count in scored.outcomes.items())
    if scored.cells[0].incomplete is None:
        show(grid)
    else:
        say(f"{title}: incomplete, so there are no values: {scored.cells[0].incomplete}")
    say(f"{counted(len(scored.verdicts), 'answer')}: {outcomes}. Verdicts: {scored.folder}")
    if run.documents != run.benchmark_documents:
        say(f"Only {run.documents:,} of the benchmark's {run.benchmark_documents:,} problems.")
    for verdict in scored.out_of_time[:_LISTED]:
        key = verdict.key
        tell(
            f"note: problem {key.doc}, answer {key.repeat}: {verdict.detail}: "
            f"{(verdict.answer or '')[:60]!r}"
        )


def _interval(interval: Interval | None, scale: float) -> str:
    if interval is None:
        return "-"
    return f"{scale * interval.low:.1f} to {scale * interval.high:.1f}"
