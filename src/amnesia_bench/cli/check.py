r"""Test with needle-in-a-haystack prompts whether a fine-tune lost long-range recall.

  amnesia check --pre BASE --post FINETUNE --prompts PROMPTS
  amnesia check --pre BASE --post FINETUNE --restored REPAIRED --haystack hub \
      --lengths 32768,262144 --tasks niah_single_2,niah_single_3 --markdown summary.md
  amnesia check --pre BASE --post FINETUNE --haystack hub --suite ruler

The command first prints what the check costs at most. All checkpoints answer the same prompts in
small batches, longest prompts first, until the verdict is clear. The exit code is 3 if recall
regressed, and 0 if it did not or if the check is undecided (with a warning on stderr). The verdict
is about POST; for a repaired checkpoint, the command also reports how much recall it regained. To
resume an interrupted check, run the same command again.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.engine_options import engine_choice
from amnesia_bench.cli.niah_options import add_prompt_arguments, haystack_of, prompt_fields
from amnesia_bench.cli.output import say, show, table
from amnesia_bench.cli.progress import TerminalProgress, hide_library_bars
from amnesia_bench.cli.requests import make
from amnesia_bench.costs.check_cost import CheckCost
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.recall.check_summary import columns, headline, heat_rows, notes, row
from amnesia_bench.records.recall import TOLERATED_DROP, CheckReport, CheckVerdict
from amnesia_bench.requests.recall import SUITES, CheckRequest
from amnesia_bench.store.files import explaining_write_errors, replace_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pre", type=Path, required=True, help="checkpoint folder before the fine-tune"
    )
    parser.add_argument(
        "--post", type=Path, required=True, help="checkpoint folder after the fine-tune"
    )
    parser.add_argument("--restored", type=Path, help="a repaired checkpoint, compared with both")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompts", type=Path, help="folder that `amnesia niah build` wrote")
    source.add_argument(
        "--haystack",
        help="build the prompts from these essays: hub, hub@REVISION, or a file or folder",
    )
    parser.add_argument(
        "--suite",
        help=f"a preset of tasks, lengths and samples: {', '.join(SUITES)} (with --haystack: niah)",
    )
    add_prompt_arguments(parser, amnesia_bench.load_niah("check"), "--haystack")
    parser.add_argument(
        "--margin",
        type=float,
        default=0.0,
        metavar="POINTS",
        help="largest drop that does not count as a regression (0: every significant drop counts)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report to this file")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the summary to this file"
    )
    parser.add_argument(
        "--work", type=Path, help="folder for answers and records (default: in $AMNESIA_STORE)"
    )


def run(args: argparse.Namespace) -> ExitCode:
    limit = 100 * (1 - TOLERATED_DROP)
    if not 0 <= args.margin < limit:
        raise UserError(f"--margin {args.margin:g}: must be from 0 to below {limit:g} points")
    request = make(
        CheckRequest,
        pre=args.pre,
        post=args.post,
        restored=args.restored,
        prompts=args.prompts,
        haystack=haystack_of(args.haystack),
        suite=args.suite,
        margin=args.margin / 100,
        engine=engine_choice(args),
        work=args.work,
        **prompt_fields(args),
    )
    for file in (args.json, args.markdown):
        if file is not None and not file.parent.is_dir():
            raise UserError(f"{file}: the folder {file.parent} does not exist")
    # If a folder is missing or damaged, the check itself says what is wrong with it.
    with suppress(UserError):
        _say_cost(amnesia_bench.estimate_check(request))
    hide_library_bars()
    with TerminalProgress() as progress:
        finished = amnesia_bench.check(request, progress=progress.say, count=progress.count)
    _write(args, finished.folder)
    _print(finished.report, finished.folder, progress)
    regressed = finished.report.verdict is CheckVerdict.REGRESSION
    return ExitCode.REGRESSION if regressed else ExitCode.DONE


def _say_cost(cost: CheckCost) -> None:
    hours = ""
    if cost.gpu_hours is not None:
        hours = f"; about {cost.gpu_hours:.2g} hours on one {cost.gpu.upper()}"
    say(
        f"At most {cost.answers:,} answers to prompts of {cost.prompt_sets} "
        f"{'task and length' if cost.prompt_sets == 1 else 'tasks and lengths'}: "
        f"{cost.prompt_tokens / 1e6:,.3g} million prompt tokens and "
        f"{cost.new_tokens / 1e6:,.3g} million new tokens{hours}. A clear verdict needs fewer."
    )


def _write(args: argparse.Namespace, records: Path) -> None:
    for file, record in ((args.json, "check.json"), (args.markdown, "summary.md")):
        if file is None:
            continue
        with explaining_write_errors(file, f"the records are in {records}"):
            replace_text(file, (records / record).read_text(encoding="utf-8"))


def _print(report: CheckReport, records: Path, progress: TerminalProgress) -> None:
    grid = table("recall in per cent, drop from pre to post in points", columns(report))
    for checked in report.cells:
        grid.add_row(*row(checked, report))
    show(grid)
    if lengths := report.heat_maps[0].context_tokens:
        heat = table("", ("depth", *map(str, lengths)))
        for cells in heat_rows(report.heat_maps):
            heat.add_row(*cells)
        say(f"Recall by depth and length in per cent, {' > '.join(report.checkpoints)} (n):")
        show(heat)
    for note in notes(report):
        say(note)
    say(f"Records: {records}")
    say(f"Long-range recall: {headline(report)}.")
    if report.advice is not None:
        say(f"To repair it, restore W_Q and W_K of the base:\n  {report.advice}")
    if report.verdict is CheckVerdict.UNDECIDED:
        progress.say(
            f"warning: undecided: {report.rule.samples} prompts per task and length neither show "
            "nor rule out a regression. Use more --samples."
        )
