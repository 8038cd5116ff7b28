"""Print the log of a stage, which contains the output of all its attempts.

If SLURM ran the stage, the output of its jobs is printed before the log.

  amnesia logs sft_miromind_9b-s0
  amnesia logs recall.sft_miromind_9b-s0.262144

The argument can be a prefix of the stage's id, with or without its kind. If several stages have
this name, the command chooses the stage on which all others depend, for example a training stage
and not the evaluations of its checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from amnesia_bench.cli.output import say, tell
from amnesia_bench.errors import ExitCode
from amnesia_bench.pipeline.status import logs_of
from amnesia_bench.store.layout import store_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", help="id of a stage, or a prefix of it: [KIND.]NAME")
    parser.add_argument(
        "--store", type=Path, help="folder of all artifacts (default: $AMNESIA_STORE)"
    )


def run(args: argparse.Namespace) -> ExitCode:
    spec, files = logs_of(store_of(args.store), args.stage)
    tell(spec.id)
    for file in files:
        if len(files) > 1:
            tell(f"==> {file} <==")
        say(file.read_text(encoding="utf-8", errors="replace").rstrip("\n"))
    return ExitCode.DONE
