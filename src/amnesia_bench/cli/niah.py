r"""Build prompts of RULER's tasks, which all checkpoints with the same tokenizer can share.

  amnesia niah build --tokenizer CHECKPOINT --lengths 32768,262144 --haystack hub --out prompts
  amnesia niah build --tokenizer CHECKPOINT --lengths 32768 --out questions \
      --tasks ruler_vt,ruler_cwe,ruler_qa_squad --squad dev-v2.0.json

The prompts are byte for byte equal to those that lm-evaluation-harness 0.4.13 generates with its
default seed for one task and one length at a time; another --seed gives other needles.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.command import Subcommand
from amnesia_bench.cli.niah_options import haystack_of, lengths_of, listed, split_list
from amnesia_bench.cli.output import show, table
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode
from amnesia_bench.records.ids import RECALL_TASKS
from amnesia_bench.requests.recall import BuildPromptsRequest


def _add_build_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder of a checkpoint or of its tokenizer"
    )
    parser.add_argument(
        "--lengths", required=True, help="context lengths in tokens: 32768,65536,131072,262144"
    )
    defaults = amnesia_bench.load_niah()
    tasks = listed(defaults.tasks)
    parser.add_argument(
        "--tasks", default=tasks, help=f"any of {listed(RECALL_TASKS)} (default: {tasks})"
    )
    parser.add_argument(
        "--haystack",
        help="essays for the tasks that hide needles in essays: hub, hub@REVISION, a file "
        "(.json, .jsonl, .txt, .md) or a folder of texts",
    )
    parser.add_argument(
        "--squad", type=Path, metavar="FILE", help="questions of ruler_qa_squad: dev-v2.0.json"
    )
    parser.add_argument(
        "--hotpot",
        type=Path,
        metavar="FILE",
        help="questions of ruler_qa_hotpot: hotpot_dev_distractor_v1.json",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=defaults.samples,
        help=f"prompts per task and length ({defaults.samples})",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the needles; lm-eval's prompts have seed 0 (0)"
    )
    parser.add_argument(
        "--repeat",
        action="store_true",
        help="repeat a haystack that is too short; the record mentions it",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def _build(args: argparse.Namespace) -> ExitCode:
    request = make(
        BuildPromptsRequest,
        tokenizer=args.tokenizer,
        tasks=split_list(args.tasks),
        lengths=lengths_of(args.lengths),
        samples=args.samples,
        haystack=haystack_of(args.haystack),
        repeat=args.repeat,
        seed=args.seed,
        squad=args.squad,
        hotpot=args.hotpot,
    )
    records = amnesia_bench.build_prompts(request, args.out)
    grid = table(str(args.out), ("prompt set", "method", "samples", "prompt tokens"), left=2)
    for record in records:
        tokens = record.prompt_tokens
        grid.add_row(
            record.name,
            "splicing" if record.spliced else "tokenising whole prompts",
            str(len(tokens)),
            f"{min(tokens)} - {max(tokens)}",
        )
    show(grid)
    return ExitCode.DONE


SUBCOMMANDS: Mapping[str, Subcommand] = {
    "build": Subcommand("build the prompts for a tokenizer", _add_build_arguments, _build)
}
