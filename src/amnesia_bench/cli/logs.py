"""Print what the attempts at a stage said.

  amnesia logs tiny_sft_cot-s0-6ed3

The beginning of an id is enough; `amnesia status` lists them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from amnesia_bench.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", help="id of a stage, or how it begins")
    parser.add_argument("--store", type=Path, help="folder of all artifacts ($AMNESIA_STORE)")


def run(args: argparse.Namespace) -> ExitCode:
    from amnesia_bench.cli.output import say
    from amnesia_bench.pipeline.status import log_of
    from amnesia_bench.store.layout import store_root

    log = log_of(args.store or store_root(), args.stage)
    say(log.read_text(encoding="utf-8", errors="replace").rstrip("\n"))
    return ExitCode.DONE
