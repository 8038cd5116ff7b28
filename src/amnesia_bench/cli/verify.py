"""Hold a folder that amnesia wrote against its manifest.

Every file's sha256 (for hardlinked shards that were not read: size and modification time), the
structure of the safetensors files, and the bytes of each tensor that a restore put in.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from amnesia_bench.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder that amnesia wrote")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> ExitCode:
    from amnesia_bench.cli.output import console, print_json
    from amnesia_bench.surgery.verify import verify

    report = verify(args.folder)
    if args.json:
        print_json(report)
    else:
        out = console()
        for finding in report.findings:
            out.print(f"[red]damaged[/red]  {finding}", soft_wrap=True)
        out.print(report.summary, soft_wrap=True)
    return ExitCode.STAGE_FAILED if report.findings else ExitCode.DONE
