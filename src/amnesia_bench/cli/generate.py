r"""Generate a model's answers to a reasoning benchmark.

  amnesia generate --checkpoint FINETUNE --task math500 --method +SFT --out answers/sft
  amnesia generate --checkpoint BASE --task gsm8k --data test.jsonl --out answers/base \
      --chat-template finetune.jinja eval.repeats=4

The sampling settings and the number of answers per problem are in configs/eval/TASK.yaml. Each
answer is written as soon as it is complete. To resume an interrupted run, run the same command
again. To score the answers, use `amnesia score`.

Several GPUs or machines can each generate a part of the answers, and the result is the same:

  amnesia generate --checkpoint FINETUNE --task math500 --part 1/2 --out answers/first
  amnesia generate --checkpoint FINETUNE --task math500 --part 2/2 --out answers/second
  amnesia generate --checkpoint FINETUNE --task math500 --merge answers/first \
      --merge answers/second --out answers/sft
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.division_options import add_division_arguments, division_of
from amnesia_bench.cli.engine_options import add_engine_arguments, engine_choice
from amnesia_bench.cli.output import say, typed
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode
from amnesia_bench.printable import counted
from amnesia_bench.requests.reasoning import GenerateRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument(
        "--task", required=True, help="benchmark: math500, gsm8k, aime24, livecodebench or ifeval"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the answers")
    parser.add_argument(
        "--data",
        type=Path,
        help="file with the problems (default: download them): .jsonl or .parquet; for "
        "livecodebench .jsonl, or a folder of .jsonl files",
    )
    parser.add_argument("--method", default="", help="label of the row in a table: +QK-Restore")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N problems")
    template = parser.add_mutually_exclusive_group()
    template.add_argument(
        "--chat-template", type=Path, help="Jinja file that replaces the tokenizer's chat template"
    )
    template.add_argument(
        "--no-chat-template", action="store_true", help="send the problems without a chat template"
    )
    add_engine_arguments(parser)
    add_division_arguments(parser)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="override a value of configs/eval/TASK.yaml: eval.repeats=4, eval.top_k=20",
    )


def run(args: argparse.Namespace) -> ExitCode:
    off = ["eval.chat_template=false"] if args.no_chat_template else []
    request = make(
        GenerateRequest,
        checkpoint=args.checkpoint,
        task=args.task,
        config=amnesia_bench.load_eval(args.task, [*args.overrides, *off]),
        data=args.data,
        limit=args.limit,
        method=args.method,
        chat_template=args.chat_template,
        engine=engine_choice(args),
        division=division_of(args),
    )
    answers = amnesia_bench.generate(request, args.out)
    problems = len({generation.key.doc for generation in answers.generations})
    following = f"Next: {typed('score', args.out)}"
    if args.part is not None:
        following = f"When all parts are done, run the same command with --merge {args.out}"
    say(
        f"{args.out}: {counted(len(answers.generations), 'answer')} to "
        f"{counted(problems, 'problem')} of {args.task}. "
        f"{following}"
    )
    return ExitCode.DONE
