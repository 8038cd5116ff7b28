"""Options that select NIAH prompts, shared by several commands."""

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
    """The fields of a request that select prompts."""

    tasks: tuple[str, ...] | None
    lengths: tuple[int, ...] | None
    samples: int | None


def add_prompt_arguments(
    parser: argparse.ArgumentParser, defaults: NiahConfig, alternative: str
) -> None:
    """Add the options that select prompts, and those of the inference engine.

    Args:
        parser: the command's parser.
        defaults: the values that the help texts state as defaults without --prompts.
        alternative: the option that the command accepts instead of --prompts.
    """
    default = f"default: all of --prompts; with {alternative}:"
    parser.add_argument(
        "--lengths", help=f"context lengths in tokens ({default} {listed(defaults.lengths)})"
    )
    parser.add_argument("--tasks", help=f"NIAH tasks ({default} {listed(defaults.tasks)})")
    parser.add_argument(
        "--samples",
        type=int,
        help=f"maximum number of prompts per task and length ({default} {defaults.samples})",
    )
    add_engine_arguments(parser)


def prompt_fields(args: argparse.Namespace) -> PromptFields:
    """Return the values of these options as fields of a request.

    Raises:
        UserError: --lengths is not a list of numbers.
    """
    return {
        "tasks": None if args.tasks is None else split_list(args.tasks),
        "lengths": None if args.lengths is None else lengths_of(args.lengths),
        "samples": args.samples,
    }


def listed(items: Sequence[object]) -> str:
    """Join items with commas, as in the value of an option."""
    return ",".join(map(str, items))


def split_list(text: str) -> tuple[str, ...]:
    """Split a comma-separated list, and remove duplicates."""
    return tuple(dict.fromkeys(item.strip() for item in text.split(",")))


def lengths_of(text: str) -> tuple[int, ...]:
    """Parse the value of `--lengths`, a list of lengths in tokens, and remove duplicates.

    Raises:
        UserError: the text is not a list of positive integers.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,11}", part) for part in parts):
        raise UserError(
            f"--lengths {shortened(text)!r}: not a list of lengths in tokens",
            hint="--lengths 32768,262144",
        )
    return tuple(dict.fromkeys(map(int, parts)))


def haystack_of(text: str | None) -> HubEssays | Path | None:
    """Parse the value of `--haystack`, which is hub, hub@REVISION, or a path."""
    if text is None:
        return None
    if text == "hub" or text.startswith("hub@"):
        return HubEssays(revision=text.partition("@")[2] or None)
    return Path(text)
