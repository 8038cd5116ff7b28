"""Try the sandbox that programs written by models are run in, and say what it holds back."""

from __future__ import annotations

import argparse

from amnesia_bench.cli.output import say, show, table
from amnesia_bench.errors import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: there is nothing to choose."""


def run(args: argparse.Namespace) -> ExitCode:
    from amnesia_bench.sandbox import find_launcher, refuse_leaks, run_checks

    launcher = find_launcher()
    checks = run_checks(launcher)
    grid = table("Sandbox", ("way out", "contained", "found"), left=3)
    for check in checks:
        grid.add_row(check.name, "yes" if check.contained else "NO", check.found)
    show(grid)
    for name, value in launcher.settings.items():
        say(f"{name}: {value}")
    refuse_leaks(checks)
    return ExitCode.DONE
