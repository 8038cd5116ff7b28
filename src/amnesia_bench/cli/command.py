"""What a command consists of."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from amnesia_bench.errors import ExitCode


class Subcommand(NamedTuple):
    """The second word of a command: `prepare` of `amnesia data prepare`."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], ExitCode]
