"""Build the needle-in-a-haystack prompts: once per tokenizer, for all checkpoints that share it.

  amnesia niah build --tokenizer CHECKPOINT --lengths 32768,262144 --haystack hub --out prompts

The prompts are those of lm-evaluation-harness 0.4.13, byte by byte, for each task and length by
itself and its default seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from amnesia_bench.cli.niah_options import lengths_of, niah_defaults, tasks_of
from amnesia_bench.cli.output import show, table
from amnesia_bench.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = niah_defaults()
    parser.add_argument("action", choices=("build",))
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder of a checkpoint or of its tokenizer"
    )
    parser.add_argument(
        "--lengths", required=True, help="context lengths in tokens: 32768,65536,131072,262144"
    )
    tasks = ",".join(defaults.tasks)
    parser.add_argument("--tasks", default=tasks, help=f"({tasks})")
    parser.add_argument(
        "--haystack",
        help="essays of niah_single_2 and _3: hub, hub@REVISION, a file "
        "(.json, .jsonl, .txt, .md) or a folder of texts",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=defaults.samples,
        help=f"prompts per task and length ({defaults.samples})",
    )
    parser.add_argument(
        "--repeat", action="store_true", help="repeat a haystack that is too short, and record it"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> ExitCode:
    from amnesia_bench.recall.niah.build import NiahBuild, build_cells
    from amnesia_bench.recall.niah.layout import cell_name

    records = build_cells(
        NiahBuild(
            tokenizer=args.tokenizer,
            lengths=lengths_of(args.lengths),
            tasks=tasks_of(args.tasks),
            haystack=args.haystack,
            samples=args.samples,
            repeat=args.repeat,
        ),
        args.out,
    )
    grid = table(str(args.out), ("cell", "made by", "samples", "units", "prompt tokens"), left=2)
    for cell in records:
        tokens = cell.samples.prompt_tokens
        grid.add_row(
            cell_name(cell.task, cell.context_tokens),
            "splicing" if cell.spliced else "tokenising whole prompts",
            str(len(tokens)),
            str(max(document.units for document in cell.documents)),
            f"{min(tokens)} - {max(tokens)}",
        )
    show(grid)
    return ExitCode.DONE
