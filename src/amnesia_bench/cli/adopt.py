"""Use your own checkpoint instead of the checkpoint that a stage of an experiment makes.

  amnesia adopt --as sft_miromind_2b-s0 MY_FINETUNE experiment=table4
  amnesia adopt --as stage3_2b-s0 MY_HYPENET experiment=table1,table4 profile=paper

The stage then counts as done, and `amnesia run` with the same overrides runs no stage that only it
needed. `amnesia plan ... --stages` lists the names of stages. The shape and the tokenizer must be
those of the stage. Weights become hard links if the checkpoint and the store are on one file
system: do not edit them in place. Reports name adopted checkpoints.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import say, size
from amnesia_bench.errors import ExitCode
from amnesia_bench.requests.experiments import AdoptRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder to adopt")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="experiments, as for `amnesia run`"
    )
    parser.add_argument(
        "--as", required=True, dest="stage", metavar="STAGE", help="name or id of the stage"
    )
    parser.add_argument(
        "--store", type=Path, help="folder of all artifacts (default: $AMNESIA_STORE)"
    )


def run(args: argparse.Namespace) -> ExitCode:
    adopted = amnesia_bench.adopt(
        AdoptRequest(
            stage=args.stage,
            checkpoint=args.checkpoint,
            overrides=tuple(args.overrides),
            store=args.store,
        )
    )
    say(f"{adopted.stage}: adopted {args.checkpoint} ({adopted.identity})")
    say(f"{adopted.folder}: {size(adopted.linked_bytes)} of it are hard links.")
    if adopted.tokenizer_of is None:
        say("Its tokenizer was not compared, since the store has none yet for this stage.")
    return ExitCode.DONE
