r"""Search the best trade-off of recall against reasoning between two checkpoints, on a budget.

  amnesia tune --pre BASE --post FINETUNE --prompts PROMPTS --reasoning gsm8k:64 --budget 24 \
      --out TUNED
  amnesia tune --pre BASE --post FINETUNE --prompts PROMPTS --reasoning math500:100 \
      --data problems.jsonl --ranking ranking.json --out TUNED eval.max_new_tokens=1024

A candidate gives each role (W_Q, W_K, their norms, W_O) of each softmax layer its own share of
BASE, and all other weights one share together. Candidates answer the same needle prompts and
problems in a race; those that are significantly worse than FINETUNE or than QK-Restore are dropped.
The chosen one, which has the most recall among those whose reasoning is within 1 point of
FINETUNE's, is confirmed on fresh prompts and problems, and written as a checkpoint with its proof.
The budget is a number of full evaluations; the confirmation comes on top. To resume an interrupted
search, run the same command again.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.engine_options import add_model_arguments, engine_choice
from amnesia_bench.cli.niah_options import lengths_of, split_list
from amnesia_bench.cli.output import say, shortened, show, table, typed
from amnesia_bench.cli.progress import TerminalProgress, hide_library_bars
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.records.tuning import Tuning
from amnesia_bench.requests.tuning import ReasoningProblems, TuneRequest
from amnesia_bench.tuning.summary import (
    COLUMNS,
    CONFIRMED_COLUMNS,
    candidate_rows,
    confirmed_rows,
    tuning_headline,
)

_BUDGET = TuneRequest.model_fields["budget"].default


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pre", type=Path, required=True, help="checkpoint folder before the fine-tune"
    )
    parser.add_argument(
        "--post", type=Path, required=True, help="checkpoint folder after the fine-tune"
    )
    parser.add_argument(
        "--prompts", type=Path, required=True, help="folder that `amnesia niah build` wrote"
    )
    parser.add_argument(
        "--reasoning",
        required=True,
        metavar="TASK:N",
        help="benchmark, and number of its problems: gsm8k:64; N others confirm the choice",
    )
    parser.add_argument("--data", type=Path, help="file with the problems (default: download them)")
    parser.add_argument(
        "--budget",
        type=float,
        default=_BUDGET,
        metavar="N",
        help=f"number of full evaluations: all prompts and problems ({_BUDGET:g})",
    )
    _add_prompt_choices(parser)
    parser.add_argument(
        "--ranking",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="file of `amnesia rank-layers` or `rank-heads`: what it ranks first is tried first; "
        "repeatable",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the questions and the candidates (0)"
    )
    parser.add_argument(
        "--cast",
        action="store_true",
        help="round the weights of PRE to the dtype of POST if they differ",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint to write")
    parser.add_argument("--work", type=Path, help="folder for answers (default: in $AMNESIA_STORE)")
    add_model_arguments(parser)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="override a value of configs/eval/TASK.yaml: eval.max_new_tokens=1024",
    )


def _add_prompt_choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--fresh-prompts",
        type=Path,
        help="other prompts, which confirm the choice (default: half of --prompts)",
    )
    parser.add_argument("--tasks", help="tasks with one needle (default: all of --prompts)")
    parser.add_argument("--lengths", help="context lengths in tokens (default: all of --prompts)")
    parser.add_argument(
        "--samples",
        type=int,
        help="prompts per task and length of a full evaluation; as many confirm the choice "
        "(default: half of --prompts)",
    )
    parser.add_argument(
        "--max-new-tokens", type=int, help="maximum tokens per answer to a needle prompt (128)"
    )


def run(args: argparse.Namespace) -> ExitCode:
    task, problems = _task_and_number(args.reasoning)
    config = amnesia_bench.load_eval(task, ["eval.repeats=1", *args.overrides])
    request = make(
        TuneRequest,
        {"rankings": "--ranking"},
        pre=args.pre,
        post=args.post,
        prompts=args.prompts,
        reasoning=make(
            ReasoningProblems,
            {"problems": "--reasoning"},
            task=task,
            problems=problems,
            config=config,
            data=args.data,
        ),
        budget=args.budget,
        fresh_prompts=args.fresh_prompts,
        tasks=None if args.tasks is None else split_list(args.tasks),
        lengths=None if args.lengths is None else lengths_of(args.lengths),
        samples=args.samples,
        max_new_tokens=args.max_new_tokens,
        rankings=tuple(args.ranking),
        seed=args.seed,
        cast=args.cast,
        engine=engine_choice(args),
        work=args.work,
    )
    hide_library_bars()
    with TerminalProgress() as progress:
        tuning = amnesia_bench.tune(request, args.out, progress=progress.say, count=progress.count)
    _print(tuning)
    say(f"{args.out}: the checkpoint, tuning.md and tuning.svg.")
    say(f"To write it again: {_restore_command(args)}")
    return ExitCode.DONE


def _task_and_number(text: str) -> tuple[str, int]:
    task, _, number = text.partition(":")
    if not task or not re.fullmatch(r"0*[1-9][0-9]{0,8}", number):
        raise UserError(
            f"--reasoning {shortened(text)}: not a benchmark with a number of problems",
            hint="--reasoning gsm8k:64",
        )
    return task, int(number)


def _print(tuning: Tuning) -> None:
    grid = table("search, in per cent", COLUMNS)
    for row in candidate_rows(tuning):
        grid.add_row(*row)
    show(grid)
    grid = table("fresh questions, in per cent; bias and differences in points", CONFIRMED_COLUMNS)
    for row in confirmed_rows(tuning):
        grid.add_row(*row)
    show(grid)
    say(f"Rule, fixed before the search: {tuning.rule}.")
    say(tuning_headline(tuning))


def _restore_command(args: argparse.Namespace) -> str:
    words = ["--pre", args.pre, "--post", args.post, "--variant", args.out / "tuned.yaml"]
    return typed("restore", *words, *(["--cast"] if args.cast else [])) + " ..."
