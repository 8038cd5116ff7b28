r"""Has a fine-tune lost long-range recall? Needles in haystacks, before and after it.

  amnesia check --pre BASE --post FINETUNE --prompts PROMPTS
  amnesia check --pre BASE --post FINETUNE --restored REPAIRED --haystack hub \
      --lengths 32768,262144 --tasks niah_single_2,niah_single_3 --markdown summary.md

All checkpoints answer the same prompts, the longest first and few at a time, until the verdict is
clear. Exit code 0: no regression, or undecided (said on stderr); 3: recall regressed. The verdict
is on POST; what a repaired checkpoint wins back is reported beside it. A check that was killed goes
on where it stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from amnesia_bench.cli.niah_options import add_cell_arguments, chosen_cells, niah_defaults
from amnesia_bench.errors import ExitCode, MissingEnvironmentError, UserError

if TYPE_CHECKING:
    from amnesia_bench.cli.progress import Progress
    from amnesia_bench.recall.check_inputs import CellChoice
    from amnesia_bench.recall.measure import Candidate, PromptCell
    from amnesia_bench.records.recall import CheckReport, Rule

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
    add_cell_arguments(parser, niah_defaults("check"), "--haystack")
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
    from amnesia_bench.cli.progress import Progress
    from amnesia_bench.inference.load_engine import open_engine
    from amnesia_bench.inference.options import EngineOptions
    from amnesia_bench.inference.progress_engine import WatchedEngine
    from amnesia_bench.recall.check import CheckPlan, check
    from amnesia_bench.recall.check_inputs import open_candidates
    from amnesia_bench.recall.check_results import publish_check
    from amnesia_bench.recall.niah.tasks import NIAH_SAMPLING
    from amnesia_bench.records.recall import CheckVerdict
    from amnesia_bench.store.layout import store_root
    from amnesia_bench.store.provenance import collect_provenance

    choice, defaults = chosen_cells(args), niah_defaults("check")
    _rule(args, choice.samples or defaults.samples)
    options = EngineOptions(
        max_context_tokens=args.max_context_tokens, attn_logits_scaling=args.attn_logits_scaling
    )
    for file in (args.json, args.markdown):
        if file is not None and not file.parent.is_dir():
            raise UserError(f"{file}: there is no folder {file.parent}")
    if missing := [name for name in ("torch", "transformers") if find_spec(name) is None]:
        raise MissingEnvironmentError(
            f"check needs {' and '.join(missing)}, which are not installed",
            hint='pip install "amnesia-bench[eval]"',
        )
    progress = Progress()
    provenance = collect_provenance(["amnesia", *sys.argv[1:]], seeds={})
    folders = {"pre": args.pre, "post": args.post}
    if args.restored is not None:
        folders["restored"] = args.restored
    candidates = open_candidates(folders)
    work = args.work or store_root()
    cells = _cells(args, candidates, choice, work)
    plan = CheckPlan(
        pre=candidates[0],
        post=candidates[1],
        restored=candidates[2] if len(candidates) > 2 else None,
        cells=cells,
        sampling=replace(NIAH_SAMPLING, max_new_tokens=defaults.max_new_tokens),
        rule=_rule(args, choice.samples or min(map(len, cells))),
    )

    def load(folder: Path) -> WatchedEngine:
        return WatchedEngine(open_engine(args.engine, folder, options), progress.count)

    result = check(plan, load, work, progress.say)
    records = publish_check(result, work, provenance)
    _write(args, records)
    _print(result.report, records, progress)
    regressed = result.report.verdict is CheckVerdict.REGRESSION
    return ExitCode.RECALL_REGRESSION if regressed else ExitCode.DONE


def _cells(
    args: argparse.Namespace, candidates: Sequence[Candidate], choice: CellChoice, work: Path
) -> tuple[PromptCell, ...]:
    from amnesia_bench.recall.check_inputs import build_cells_of, open_cells_of
    from amnesia_bench.recall.niah.build import NiahBuild

    if args.prompts is not None:
        return open_cells_of(args.prompts, candidates, choice)
    defaults = niah_defaults("check")
    build = NiahBuild(
        tokenizer=args.pre,
        lengths=choice.lengths or defaults.lengths,
        tasks=choice.tasks or defaults.tasks,
        haystack=args.haystack,
        samples=choice.samples or defaults.samples,
    )
    return build_cells_of(build, work, candidates)


def _rule(args: argparse.Namespace, samples: int) -> Rule:
    from amnesia_bench.records.recall import Rule

    try:
        return Rule(samples=samples, margin=args.margin / 100, error_rate=ERROR_RATE)
    except ValueError as error:
        raise UserError(f"--margin {args.margin:g}: {error}") from error


def _write(args: argparse.Namespace, records: Path) -> None:
    from amnesia_bench.store.files import explaining_write_errors, replace_text

    for file, record in ((args.json, "check.json"), (args.markdown, "summary.md")):
        if file is None:
            continue
        with explaining_write_errors(file, f"the records are in {records}"):
            replace_text(file, (records / record).read_text(encoding="utf-8"))


def _print(report: CheckReport, records: Path, progress: Progress) -> None:
    from amnesia_bench.cli.output import say, show, table
    from amnesia_bench.recall.check_results import columns, headline, notes, row
    from amnesia_bench.recall.heatmap import heat_rows
    from amnesia_bench.records.recall import CheckVerdict

    grid = table("recall in per cent, drop from pre to post in points", columns(report))
    for cell in report.cells:
        grid.add_row(*row(cell, report))
    lengths = map(str, report.heat_maps[0].context_tokens)
    heat = table("", ("depth", *lengths))
    for cells in heat_rows(report.heat_maps):
        heat.add_row(*cells)
    show(grid)
    say(f"Recall by depth and length in per cent, {' > '.join(report.checkpoints)} (n):")
    show(heat)
    for note in notes(report):
        say(note)
    say(f"Records: {records}")
    say(f"Long-range recall: {headline(report)}.")
    if report.advice is not None:
        say(f"Put the routing of the base back:\n  {report.advice}")
    if report.verdict is CheckVerdict.UNDECIDED:
        progress.say(
            "warning: undecided: neither a regression nor its absence is clear after "
            f"{report.rule.samples} prompts per task and length. More --samples would tell."
        )
