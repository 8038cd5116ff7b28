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
from typing import TYPE_CHECKING, Any

from amnesia_bench.cli.niah_options import TASKS, lengths_of, tasks_of
from amnesia_bench.errors import ExitCode, MissingEnvironmentError, UserError

if TYPE_CHECKING:
    from amnesia_bench.evals.recall import PromptCell
    from amnesia_bench.records.recall import CheckReport, Rule

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
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompts", type=Path, help="folder that `amnesia niah build` wrote")
    source.add_argument(
        "--haystack", help="build the prompts: hub, hub@REVISION, or a file or folder of essays"
    )
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
    from amnesia_bench.evals.niah.tasks import NIAH_SAMPLING
    from amnesia_bench.records.recall import CheckVerdict
    from amnesia_bench.store.layout import store_root
    from amnesia_bench.store.provenance import collect_provenance

    rule = _rule(args)
    tasks, lengths = tasks_of(args.tasks), lengths_of(args.lengths)
    for file in (args.json, args.markdown):
        if file is not None and not file.parent.is_dir():
            raise UserError(f"{file}: there is no folder {file.parent}")
    try:
        from amnesia_bench.evals.check import CheckPlan, check
        from amnesia_bench.evals.check_inputs import open_candidates
        from amnesia_bench.evals.check_results import publish_check
        from amnesia_bench.evals.engines.opening import open_engine
        from amnesia_bench.evals.engines.options import EngineOptions
    except ImportError as error:
        raise MissingEnvironmentError(
            f"check needs torch and transformers ({error}).",
            hint='pip install "amnesia-bench[eval]"',
        ) from error
    provenance = collect_provenance(["amnesia", *sys.argv[1:]], seeds={})
    folders = {"pre": args.pre, "post": args.post}
    if args.restored is not None:
        folders["restored"] = args.restored
    candidates, tokenizer = open_candidates(folders)
    work = args.work or store_root()
    plan = CheckPlan(
        pre=candidates[0],
        post=candidates[1],
        restored=candidates[2] if len(candidates) > 2 else None,
        cells=_cells(args, tokenizer, tasks, lengths, work),
        tokenizer=tokenizer,
        sampling=NIAH_SAMPLING,
        rule=rule,
    )
    options = EngineOptions()
    result = check(plan, lambda each: open_engine("transformers", each, options), work, _progress)
    records = publish_check(result, work, provenance)
    _write(args, records)
    _print(result.report, records)
    regressed = result.report.verdict is CheckVerdict.REGRESSION
    return ExitCode.RECALL_REGRESSION if regressed else ExitCode.DONE


def _cells(
    args: argparse.Namespace,
    tokenizer: Any,
    tasks: tuple[str, ...],
    lengths: tuple[int, ...],
    work: Path,
) -> tuple[PromptCell, ...]:
    from amnesia_bench.evals.check_inputs import build_cells_of, open_cells_of
    from amnesia_bench.evals.niah.build import NiahBuild

    if args.prompts is not None:
        return open_cells_of(args.prompts, tokenizer, tasks, lengths, args.samples)
    build = NiahBuild(
        tokenizer=args.pre,
        lengths=lengths,
        tasks=tasks,
        haystack=args.haystack,
        samples=args.samples,
    )
    return build_cells_of(build, work, tokenizer)


def _rule(args: argparse.Namespace) -> Rule:
    from amnesia_bench.records.recall import Rule

    try:
        return Rule(samples=args.samples, margin=args.margin / 100, error_rate=ERROR_RATE)
    except ValueError as error:
        raise UserError(f"--samples {args.samples} --margin {args.margin:g}: {error}") from error


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
