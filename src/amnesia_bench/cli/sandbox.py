"""Test the sandbox in which programs written by models run, and print the result of each check."""

from __future__ import annotations

import argparse

from amnesia_bench.cli.output import say, show, table
from amnesia_bench.errors import ExitCode
from amnesia_bench.sandbox import find_launcher, refuse_leaks, run_checks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing, because this command has no arguments."""


def run(args: argparse.Namespace) -> ExitCode:
    launcher = find_launcher()
    checks = run_checks(launcher)
    grid = table("Sandbox", ("escape attempt", "contained", "result"), left=3)
    for check in checks:
        grid.add_row(check.name, "yes" if check.contained else "NO", check.result)
    show(grid)
    for name, value in launcher.settings.items():
        say(f"{name}: {value}")
    refuse_leaks(checks)
    return ExitCode.DONE
