"""Export cells and answers in the format of another tool or of a public collection.

  amnesia export --format lm-eval STORE --out exported
  amnesia export --format every-eval-ever HypeNet-2B/restored=scores --out exported
  amnesia export --format hub-eval-results ORG-NAME=scores --out exported

  lm-eval           results_DATE.json and samples_TASK_DATE.jsonl, as lm-evaluation-harness writes
                    them; one folder per model
  hub-eval-results  .eval_results/TASK.yaml for a model repository on the Hugging Face hub, which
                    accepts registered benchmarks only (of ours, GSM8K)
  every-eval-ever   records and samples of the Every Eval Ever collection (schema 0.3.0)

Sources are folders that `eval niah`, `score` or `check` wrote, or a whole store. The label
MODEL/METHOD/SEED= names the model; without it, the names in the cells are used.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import say, tell
from amnesia_bench.cli.report import parse_cells
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode
from amnesia_bench.printable import counted
from amnesia_bench.requests.experiments import EXPORT_FORMATS, ExportRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="[LABEL=]DIR", help="folder of cells")
    parser.add_argument(
        "--format", choices=EXPORT_FORMATS, required=True, help="format of the exported files"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="new folder for the export")


def run(args: argparse.Namespace) -> ExitCode:
    request = make(
        ExportRequest,
        {"sources": "DIR"},
        format=args.format,
        sources=tuple(parse_cells(text) for text in args.sources),
    )
    result = amnesia_bench.export(request, args.out)
    for note in result.notes:
        tell(f"note: {note}")
    files, models = counted(len(result.files), "file"), counted(len(result.models), "model")
    say(f"{args.out}: {files} for {models}.")
    return ExitCode.DONE
