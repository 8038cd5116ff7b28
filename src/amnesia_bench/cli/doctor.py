"""Examine what this machine can do: packages, GPUs, programs, store, network.

  amnesia doctor
  amnesia doctor --store /shared/store --json
  amnesia doctor --gpu

Each row is ok, absent or broken. Something absent only means that some commands are not available
here; each row says what to type to add it. The exit code is 6 if anything is broken, else 0.
--gpu also compiles and tunes the kernels of the paper's models, which takes minutes; run it on each
type of GPU, with the cache folders that the jobs use.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.output import plain, print_json, say, show, table
from amnesia_bench.errors import ExitCode
from amnesia_bench.pipeline.doctor.result import Health
from amnesia_bench.requests.experiments import DoctorRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", type=Path, help="folder of all artifacts (default: $AMNESIA_STORE)"
    )
    parser.add_argument("--gpu", action="store_true", help="compile and tune the kernels as well")
    parser.add_argument("--json", action="store_true", help="print the checks as JSON")


def run(args: argparse.Namespace) -> ExitCode:
    checks = amnesia_bench.doctor(DoctorRequest(store=args.store, gpu=args.gpu))
    broken = [check for check in checks if check.health is Health.BROKEN]
    if args.json:
        print_json([plain(check) for check in checks])
        return ExitCode.ENVIRONMENT if broken else ExitCode.DONE
    try:
        grid = table("this machine", ("", "what", "state", "to do"), left=4)
        for check in checks:
            grid.add_row(check.health, check.topic, check.text, check.fix)
        show(grid)
    except ImportError:  # rich is broken; one of the rows says so
        for check in checks:
            say(f"{check.health}: {check.topic}: {check.text} {check.fix}")
    if broken:
        say(f"Broken: {', '.join(dict.fromkeys(check.topic for check in broken))}.")
        return ExitCode.ENVIRONMENT
    say("Nothing is broken.")
    return ExitCode.DONE
