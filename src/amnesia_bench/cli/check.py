r"""Has a fine-tune lost long-range recall? Needles in haystacks, before and after it.

  amnesia check --pre BASE --post FINETUNE --prompts PROMPTS
  amnesia check --pre BASE --post FINETUNE --restored REPAIRED --prompts PROMPTS \
      --lengths 32768,262144 --tasks niah_single_2,niah_single_3 --markdown summary.md

All checkpoints answer the same prompts, the longest first and few at a time, until the verdict is
clear. Exit code 0: no regression, or undecided (said on stderr); 3: recall regressed. A check that
was killed goes on where it stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from amnesia_bench.errors import ExitCode, UserError

if TYPE_CHECKING:
    from amnesia_bench.records.recall import CheckReport, Rule

TASKS = "niah_single_1,niah_single_2,niah_single_3"
LENGTHS = "32768,262144"
SAMPLES = 500
ERROR_RATE = 0.025


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pre", type=Path, required=True, help="checkpoint folder before the fine-tune"
    )
    parser.add_argument(
        "--post", type=Path, required=True, help="checkpoint folder after the fine-tune"
    )
    parser.add_argument("--restored", type=Path, help="a repaired checkpoint, compared with both")
    parser.add_argument("--prompts", type=Path, help="folder that `amnesia niah build` wrote")
    parser.add_argument("--lengths", default=LENGTHS, help=f"in tokens ({LENGTHS})")
    parser.add_argument("--tasks", default=TASKS, help=f"({TASKS})")
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, help=f"most prompts per task and length ({SAMPLES})"
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=0.0,
        help="drop in points that is not yet a regression (0: any that is significant)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the summary here")
    parser.add_argument(
        "--work", type=Path, help="folder of answers and records (the store: $AMNESIA_STORE)"
    )


def run(args: argparse.Namespace) -> ExitCode:
    from amnesia_bench.evals.check import CheckPlan, check
    from amnesia_bench.evals.check_inputs import engine_loader, open_candidates, open_cells_of
    from amnesia_bench.evals.check_results import publish_check
    from amnesia_bench.evals.niah.tasks import NIAH_SAMPLING
    from amnesia_bench.records.recall import CheckVerdict
    from amnesia_bench.store.layout import store_root
    from amnesia_bench.store.provenance import collect_provenance

    rule = _rule(args)
    tasks, lengths = _tasks(args.tasks), _lengths(args.lengths)
    for file in (args.json, args.markdown):
        if file is not None and not file.parent.is_dir():
            raise UserError(f"{file}: there is no folder {file.parent}")
    provenance = collect_provenance(["amnesia", *sys.argv[1:]], seeds={})
    folders = {"pre": args.pre, "post": args.post}
    if args.restored is not None:
        folders["restored"] = args.restored
    candidates, tokenizer = open_candidates(folders)
    by_role = {candidate.role: candidate for candidate in candidates}
    plan = CheckPlan(
        pre=by_role["pre"],
        post=by_role["post"],
        restored=by_role.get("restored"),
        cells=open_cells_of(args.prompts, tokenizer, tasks, lengths, rule.samples),
        sampling=NIAH_SAMPLING,
        rule=rule,
    )
    work = args.work or store_root()
    result = check(plan, engine_loader(), work, _progress)
    records = publish_check(result, work, provenance)
    _write(args, records)
    _print(result.report, records)
    regressed = result.report.verdict is CheckVerdict.REGRESSION
    return ExitCode.RECALL_REGRESSION if regressed else ExitCode.DONE


def _rule(args: argparse.Namespace) -> Rule:
    from amnesia_bench.records.recall import Rule

    try:
        return Rule(samples=args.samples, margin=args.margin / 100, error_rate=ERROR_RATE)
    except ValueError as error:
        raise UserError(f"--samples {args.samples} --margin {args.margin:g}: {error}") from error


def _tasks(typed: str) -> tuple[str, ...]:
    from amnesia_bench.config.messages import nearest
    from amnesia_bench.evals.niah.tasks import TASKS as KNOWN

    tasks = tuple(dict.fromkeys(task.strip() for task in typed.split(",")))
    for task in tasks:
        if task not in KNOWN:
            raise UserError(f"--tasks: no task {task!r}", hint=nearest(task, list(KNOWN)))
    return tasks


def _lengths(typed: str) -> tuple[int, ...]:
    parts = [part.strip() for part in typed.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(
            f"--lengths {typed!r}: not a list of lengths in tokens", hint=f"--lengths {LENGTHS}"
        )
    return tuple(dict.fromkeys(map(int, parts)))


def _progress(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _write(args: argparse.Namespace, records: Path) -> None:
    from amnesia_bench.store.files import explain_write_error, replace_text

    for file, record in ((args.json, "check.json"), (args.markdown, "summary.md")):
        if file is None:
            continue
        try:
            replace_text(file, (records / record).read_text(encoding="utf-8"))
        except OSError as error:
            explained = explain_write_error(error, file, f"the records are in {records}")
            if explained is None:
                raise
            raise explained from error


def _print(report: CheckReport, records: Path) -> None:
    from amnesia_bench.cli.output import console, say, table
    from amnesia_bench.evals.check_results import columns, headline, notes, row
    from amnesia_bench.evals.heatmap import heat_rows
    from amnesia_bench.records.recall import CheckVerdict

    grid = table("recall in per cent, drop from pre to post in points", columns(report))
    for cell in report.cells:
        grid.add_row(*row(cell, report))
    lengths = map(str, report.heat_maps[0].context_tokens)
    heat = table(f"by depth and length: {' > '.join(report.checkpoints)} (n)", ("depth", *lengths))
    for cells in heat_rows(report.heat_maps):
        heat.add_row(*cells)
    out = console()
    out.print(grid)
    out.print(heat)
    for note in notes(report):
        say(note)
    say(f"Records: {records}")
    say(f"Long-range recall: {headline(report)}.")
    if report.advice is not None:
        say(f"Put the routing of the base back:\n  {report.advice}")
    if report.verdict is CheckVerdict.UNDECIDED:
        sys.stderr.write(
            "warning: undecided: neither a regression nor its absence is clear after "
            f"{report.rule.samples} prompts per task and length. More --samples would tell.\n"
        )
