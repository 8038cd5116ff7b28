"""Verify a folder that any amnesia command wrote against its manifest.

  amnesia verify REPAIRED

The command checks the sha256 of every file, the structure of the safetensors files, and the sha256
of each restored tensor. It does not check the sha256 of hard-linked shards, because they were never
read; it checks only their header, size and modification time. To copy a folder with such shards,
use cp -a, which keeps the modification time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import print_json, say
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode
from amnesia_bench.printable import counted
from amnesia_bench.requests.checkpoints import VerifyRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder that amnesia wrote")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> ExitCode:
    result = amnesia_bench.verify(make(VerifyRequest, {"folder": "DIR"}, folder=args.folder))
    if args.json:
        print_json(result)
    else:
        for finding in result.findings:
            say(finding)
        say(
            f"Checked {counted(len(result.hashed_files), 'file')} by sha256, "
            f"{counted(len(result.dated_files), 'hardlink')} by size and modification time, "
            f"{counted(result.restored_tensors, 'restored tensor')} by sha256: "
            + (counted(len(result.findings), "finding") if result.findings else "intact")
        )
    return ExitCode.STAGE_FAILED if result.findings else ExitCode.DONE
