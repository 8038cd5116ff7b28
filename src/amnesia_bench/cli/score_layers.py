r"""Evaluate a teacher with the linear mixer of its student in each layer in turn, as HALO does.

  amnesia score-layers --teacher Qwen3-0.6B --student STUDENT --out SCORES
  amnesia select-layers SCORES --count 7 --out selection.json
  amnesia convert --teacher Qwen3-0.6B --size 0_6b --stage 2 --student STUDENT \
      --layers selection.json --out HYBRID

STUDENT is the trained student of stage 1. One layer at a time, in memory, the teacher's attention
is replaced by the student's linear mixer; everything else stays the teacher's. lm-eval scores FDA,
SWDE and Ruler-QA-SQuAD (retrieval), and ARC-Challenge, ARC-Easy and HellaSwag (commonsense). To
resume an interrupted run, run the same command again: finished tasks are skipped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.niah_options import split_list
from amnesia_bench.cli.output import say, typed
from amnesia_bench.cli.progress import TerminalProgress, hide_library_bars
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.records.ids import COMMONSENSE_TASKS, RETRIEVAL_TASKS
from amnesia_bench.requests.checkpoints import ScoreLayersRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--teacher", type=Path, required=True, help="folder of a Qwen3 checkpoint")
    parser.add_argument(
        "--student", type=Path, required=True, help="folder of its trained stage-1 student"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    for name, tasks in (("retrieval", RETRIEVAL_TASKS), ("commonsense", COMMONSENSE_TASKS)):
        default = ",".join(tasks)
        parser.add_argument(f"--{name}", default=default, help=f"{name} tasks ({default})")
    parser.add_argument("--samples", type=int, help="maximum number of documents per task (all)")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="TASK=FILE",
        help="your own documents of a task instead of a download, as JSON Lines with the fields of "
        "its data set; of ruler_qa_squad, SQuAD's dev-v2.0.json; may be repeated",
    )


def run(args: argparse.Namespace) -> ExitCode:
    request = make(
        ScoreLayersRequest,
        teacher=args.teacher,
        student=args.student,
        retrieval=split_list(args.retrieval),
        commonsense=split_list(args.commonsense),
        samples=args.samples,
        data=_files(args.data),
    )
    hide_library_bars()
    with TerminalProgress() as progress:
        num_layers = amnesia_bench.score_layers(request, args.out, progress=progress.say)
    say(f"{args.out}: scores of the teacher, and with each of its {num_layers} layers replaced.")
    count = str(max(1, num_layers // 4))
    command = typed("select-layers", str(args.out), "--count", count, "--out", "selection.json")
    say(f"To select a quarter of the layers: {command}")
    return ExitCode.DONE


def _files(values: Sequence[str]) -> dict[str, Path]:
    """Parse the values of --data, and return the file of each task."""
    files: dict[str, Path] = {}
    for value in values:
        task, equals, file = value.partition("=")
        if not equals or not file:
            raise UserError(f"--data {value}: has no file", hint="--data swde=swde.jsonl")
        if task in files:
            raise UserError(f"--data {value}: {task} is given twice")
        files[task] = Path(file)
    return files
