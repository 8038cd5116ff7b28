"""Check a folder that amnesia wrote, by whatever command, against its manifest.

Checks every file's sha256 (of hardlinked shards, which were not read: header, size and
modification time; copy them with cp -a), the structure of the safetensors files, and the bytes
of each restored tensor.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import counted, print_json, say
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode
from amnesia_bench.requests.checkpoints import VerifyRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder that amnesia wrote")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> ExitCode:
    found = amnesia_bench.verify(make(VerifyRequest, {"folder": "DIR"}, folder=args.folder))
    if args.json:
        print_json(found)
    else:
        for finding in found.findings:
            say(finding)
        say(
            f"Checked {counted(len(found.hashed_files), 'file')} by sha256, "
            f"{counted(len(found.dated_files), 'hardlink')} by size and modification time, "
            f"{counted(found.restored_tensors, 'restored tensor')} by sha256: "
            + (counted(len(found.findings), "finding") if found.findings else "intact")
        )
    return ExitCode.STAGE_FAILED if found.findings else ExitCode.DONE
