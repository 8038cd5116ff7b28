r"""Let a model answer a reasoning benchmark, k times per problem.

  amnesia generate --checkpoint FINETUNE --task math500 --method +SFT --out answers/sft
  amnesia generate --checkpoint BASE --task gsm8k --data test.jsonl --out answers/base \
      --chat-template finetune.jinja eval.repeats=4

Answers are written one by one: the same command goes on where one was killed. How answers
are drawn stands in configs/eval. Judge them with `amnesia score`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from amnesia_bench.cli.engine_options import add_engine_arguments, engine_choice
from amnesia_bench.errors import ExitCode, MissingEnvironmentError, UserError

_MOST_CHARACTERS = 1 << 20  # of a template; a device has no end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the model")
    parser.add_argument(
        "--task", required=True, help="math500, gsm8k, aime24, livecodebench or ifeval"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the answers")
    parser.add_argument(
        "--data",
        type=Path,
        help="the problems in place of the hub's: .jsonl or .parquet; of livecodebench .jsonl, or "
        "a folder of them",
    )
    parser.add_argument("--method", default="", help="the row's label in a table: +QK-Restore")
    parser.add_argument("--limit", type=int, help="the first so many problems only")
    template = parser.add_mutually_exclusive_group()
    template.add_argument(
        "--chat-template", type=Path, help="a Jinja file in place of the tokenizer's template"
    )
    template.add_argument(
        "--no-chat-template", action="store_true", help="send the problems as they are"
    )
    add_engine_arguments(parser)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="change a value of configs/eval/TASK.yaml: eval.repeats=4, eval.top_k=20",
    )


def run(args: argparse.Namespace) -> ExitCode:
    from amnesia_bench.cli.output import say, typed
    from amnesia_bench.config.load import load_option
    from amnesia_bench.reasoning.documents import task_documents
    from amnesia_bench.reasoning.tasks import task_named

    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: must be at least 1")
    task = task_named(args.task)
    off = ["eval.chat_template=false"] if args.no_chat_template else []
    config = load_option("eval", task.name, [*args.overrides, *off], task.config)
    template = None if args.chat_template is None else _read(args.chat_template)
    try:
        from amnesia_bench.inference.candidates import open_candidates
        from amnesia_bench.inference.load_engine import open_engine
        from amnesia_bench.reasoning.answering import (
            AnswerPlan,
            ModelUnderTest,
            generate_answers,
            window_of,
        )
        from amnesia_bench.tokenizers.chat_format import prompt_format
    except ImportError as error:
        raise MissingEnvironmentError(
            f"generate needs torch and transformers ({error}).",
            hint='pip install "amnesia-bench[eval]"',
        ) from error
    documents = task_documents(task, args.data, args.limit, window_of(config))
    (candidate,) = open_candidates({"checkpoint": args.checkpoint})
    layout = prompt_format(
        candidate.tokenizer,
        use_template=config.chat_template,
        template=template,
        think=config.think,
    )
    model = ModelUnderTest(
        name=args.checkpoint.resolve().name,
        method=args.method,
        checkpoint=candidate.parent.identity,
    )
    plan = AnswerPlan(model=model, config=config, layout=layout)
    engine = open_engine(engine_choice(args), candidate)
    answers = generate_answers(engine, candidate.tokenizer, task, documents, plan, args.out)
    say(
        f"{args.out}: {len(answers)} answers to {len(documents.rows)} problems of {task.name}. "
        f"Next: {typed('score', args.out)}"
    )
    return ExitCode.DONE


def _read(template: Path) -> str:
    try:
        with template.open(encoding="utf-8") as file:
            text = file.read(_MOST_CHARACTERS + 1)
        if len(text) <= _MOST_CHARACTERS:
            return text
        raise UserError(f"--chat-template {template}: longer than {_MOST_CHARACTERS:,} characters")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--chat-template {template}: cannot be read ({error})") from error
