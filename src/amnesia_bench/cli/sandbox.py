"""Try the sandbox that programs written by models are run in, and say what it holds back.

amnesia sandbox
"""

from __future__ import annotations

import argparse

from amnesia_bench.cli.output import console, say, table
from amnesia_bench.errors import ExitCode, MissingEnvironmentError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = f"Exit code 6 where a way out is open.\n\n{parser.epilog}"


def run(args: argparse.Namespace) -> ExitCode:
    from amnesia_bench.evals.sandbox import try_sandbox

    launcher, checks = try_sandbox()
    grid = table("Sandbox", ("way out", "contained", "found"), left=3)
    for check in checks:
        grid.add_row(check.name, "yes" if check.contained else "NO", check.found)
    console().print(grid)
    for name, value in launcher.settings.items():
        say(f"{name}: {value}")
    if not all(check.contained for check in checks):
        raise MissingEnvironmentError("the sandbox does not hold")
    return ExitCode.DONE
