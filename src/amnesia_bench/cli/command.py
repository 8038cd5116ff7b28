"""The interface of a sub-command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from amnesia_bench.errors import ExitCode


class Subcommand(NamedTuple):
    """A sub-command, such as `prepare` in `amnesia data prepare`.

    `help` is its line in the help text of the command.
    """

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], ExitCode]
