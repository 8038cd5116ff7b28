"""What several commands ask about NIAH in the same words."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from amnesia_bench.cli.engine_options import add_engine_arguments
from amnesia_bench.cli.output import shortened
from amnesia_bench.errors import UserError

if TYPE_CHECKING:
    from amnesia_bench.config.eval_schema import NiahConfig
    from amnesia_bench.recall.check_inputs import CellChoice


def niah_defaults(name: str = "niah") -> NiahConfig:
    """Return what a command asks where nothing is typed: a config of configs/eval."""
    from amnesia_bench.config.eval_schema import NiahConfig
    from amnesia_bench.config.load import load_option

    return load_option("eval", name, [], NiahConfig)


def add_cell_arguments(
    parser: argparse.ArgumentParser, defaults: NiahConfig, otherwise: str
) -> None:
    """Add what chooses prompts and what answers them.

    Args:
        parser: of the command.
        defaults: what is asked where there is no folder of prompts.
        otherwise: the option that then takes its place.
    """
    held = f"all in the folder of --prompts; with {otherwise}"
    lengths, tasks = ",".join(map(str, defaults.lengths)), ",".join(defaults.tasks)
    parser.add_argument("--lengths", help=f"in tokens ({held} {lengths})")
    parser.add_argument("--tasks", help=f"({held} {tasks})")
    parser.add_argument(
        "--samples",
        type=int,
        help=f"prompts per task and length at most ({held} {defaults.samples})",
    )
    add_engine_arguments(parser)


def chosen_cells(args: argparse.Namespace) -> CellChoice:
    """Return what was typed behind these options.

    Raises:
        UserError: a task, a length or a number of samples that cannot be.
    """
    from amnesia_bench.recall.check_inputs import CellChoice

    if args.samples is not None and args.samples < 1:
        raise UserError(f"--samples {args.samples}: must be at least 1")
    return CellChoice(
        tasks=None if args.tasks is None else tasks_of(args.tasks),
        lengths=None if args.lengths is None else lengths_of(args.lengths),
        samples=args.samples,
    )


def tasks_of(typed: str) -> tuple[str, ...]:
    """Return the tasks of `--tasks`, each once.

    Raises:
        UserError: one is not known.
    """
    from amnesia_bench.config.messages import nearest
    from amnesia_bench.recall.niah.tasks import TASKS as KNOWN

    tasks = tuple(dict.fromkeys(task.strip() for task in typed.split(",")))
    for task in tasks:
        if task not in KNOWN:
            raise UserError(f"--tasks: no task {task!r}", hint=nearest(task, list(KNOWN)))
    return tasks


def lengths_of(typed: str) -> tuple[int, ...]:
    """Return the lengths of `--lengths` in tokens, each once.

    Raises:
        UserError: it is no list of positive whole numbers.
    """
    parts = [part.strip() for part in typed.split(",")]
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,11}", part) for part in parts):
        raise UserError(
            f"--lengths {shortened(typed)!r}: not a list of lengths in tokens",
            hint="--lengths 32768,262144",
        )
    return tuple(dict.fromkeys(map(int, parts)))
