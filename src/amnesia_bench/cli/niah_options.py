"""Options that several commands share to choose NIAH prompts."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from amnesia_bench.cli.engine_options import add_engine_arguments
from amnesia_bench.cli.output import shortened
from amnesia_bench.config.eval_schema import NiahConfig
from amnesia_bench.errors import UserError
from amnesia_bench.requests.recall import HubEssays


class PromptFields(TypedDict):
    """The fields of a request that choose prompts."""

    tasks: tuple[str, ...] | None
    lengths: tuple[int, ...] | None
    samples: int | None


def add_prompt_arguments(
    parser: argparse.ArgumentParser, defaults: NiahConfig, otherwise: str
) -> None:
    """Add what chooses prompts and what answers them.

    Args:
        parser: of the command.
        defaults: the prompts where there is no folder of them.
        otherwise: the option that then takes the place of --prompts.
    """
    default = f"default: all in the folder of --prompts; with {otherwise}"
    parser.add_argument("--lengths", help=f"in tokens ({default} {listed(defaults.lengths)})")
    parser.add_argument("--tasks", help=f"({default} {listed(defaults.tasks)})")
    parser.add_argument(
        "--samples",
        type=int,
        help=f"maximum prompts per task and length ({default} {defaults.samples})",
    )
    add_engine_arguments(parser)


def prompt_fields(args: argparse.Namespace) -> PromptFields:
    """Return what was typed for these options.

    Raises:
        UserError: lengths that are no numbers.
    """
    return {
        "tasks": None if args.tasks is None else split_list(args.tasks),
        "lengths": None if args.lengths is None else lengths_of(args.lengths),
        "samples": args.samples,
    }


def listed(items: Sequence[object]) -> str:
    """Return items as they are typed: separated by commas."""
    return ",".join(map(str, items))


def split_list(typed: str) -> tuple[str, ...]:
    """Return the items of a list separated by commas, each once."""
    return tuple(dict.fromkeys(item.strip() for item in typed.split(",")))


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


def haystack_of(typed: str | None) -> HubEssays | Path | None:
    """Return the essays of `--haystack`: hub, hub@REVISION, or a path."""
    if typed is None:
        return None
    if typed == "hub" or typed.startswith("hub@"):
        return HubEssays(revision=typed.partition("@")[2] or None)
    return Path(typed)
