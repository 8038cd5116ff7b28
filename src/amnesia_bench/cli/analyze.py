r"""Measure how far back gradients and attention reach (Figures 3, 4 and 7).

  amnesia analyze autocorrelation --data chains=data/cot --data prose=data/prose --out figure3a
  amnesia analyze gradients --checkpoint PRE --data chains=data/cot --data prose=data/prose \
      --tokens 1024 --out figure3b
  amnesia analyze distance --checkpoint pre=PRE --checkpoint post=POST --prompts niah/ --out shift
  amnesia analyze maps --checkpoint pre=PRE --checkpoint post=POST --checkpoint restored=FIXED \
      --prompts niah/ --lengths 8192 --out figure4

`autocorrelation` measures by distance how much more likely than by chance a token is repeated; it
needs no model. `gradients` measures |dL/ds|, where s are the attention logits, by distance.
`distance` measures the mean attention distance of every head (Eq. 17) on prompts or texts, and its
change from the first checkpoint to each of the others. `maps` draws the attention maps of the heads
in --heads, by default of the head whose distance fell most from the first to the second checkpoint.

--data is a folder that `amnesia data prepare` wrote; --prompts is a folder that
`amnesia niah build` wrote. The command writes records as JSON and figures as SVG. The model must
use the attention interface of transformers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from amnesia_bench.analysis import MAX_DISTANCE, TOKENS
from amnesia_bench.cli.command import Subcommand
from amnesia_bench.cli.output import say
from amnesia_bench.cli.progress import TerminalProgress, hide_library_bars
from amnesia_bench.errors import ExitCode, MissingEnvironmentError, UserError
from amnesia_bench.store.layout import check_final
from amnesia_bench.store.provenance import collect_provenance

SAMPLES, SIZE = 64, 256
_SEVERAL = "; repeat it for several, with roles such as pre, post, restored"
_COUNTS = ("samples", "tokens", "max_distance", "size")


def _add_gradients_arguments(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint(parser)
    _add_data(parser, required=True)
    _add_tokens(parser)
    _add_max_distance(parser)
    _add_samples(parser, "texts per source")
    _add_common(parser)


def _add_autocorrelation_arguments(parser: argparse.ArgumentParser) -> None:
    _add_data(parser, required=True)
    _add_max_distance(parser)
    _add_common(parser)


def _add_distance_arguments(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint(parser, _SEVERAL)
    source = parser.add_mutually_exclusive_group(required=True)
    _add_prompts(source, required=False)
    _add_data(source, required=False)
    _add_choice_of_prompts(parser)
    _add_tokens(parser)
    _add_samples(parser, "texts or prompts")
    _add_common(parser)


def _add_maps_arguments(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint(parser, _SEVERAL)
    _add_prompts(parser, required=True)
    _add_choice_of_prompts(parser)
    _add_samples(parser, "prompts")
    parser.add_argument(
        "--heads",
        help="heads to draw, as LAYER.HEAD,... (default: the head whose distance fell most)",
    )
    parser.add_argument(
        "--size", type=int, default=SIZE, help=f"number of rows and columns of a map ({SIZE})"
    )
    _add_common(parser)


def _add_checkpoint(parser: argparse.ArgumentParser, several: str = "") -> None:
    parser.add_argument(
        "--checkpoint",
        action="append",
        required=True,
        metavar="[ROLE=]DIR",
        help=f"checkpoint folder{several}",
    )


def _add_data(parser: argparse._ActionsContainer, *, required: bool) -> None:
    parser.add_argument(
        "--data",
        action="append",
        required=required,
        metavar="[NAME=]DIR",
        help="folder of prepared data; can be repeated",
    )


def _add_prompts(parser: argparse._ActionsContainer, *, required: bool) -> None:
    parser.add_argument(
        "--prompts", type=Path, required=required, metavar="DIR", help="folder of NIAH prompts"
    )


def _add_choice_of_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", help="use only these tasks of --prompts (all)")
    parser.add_argument("--lengths", help="use only this length of --prompts, in tokens (all)")


def _add_tokens(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokens", type=int, help=f"length to which every text is truncated, in tokens ({TOKENS})"
    )


def _add_max_distance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-distance", type=int, help=f"largest distance, in tokens ({MAX_DISTANCE})"
    )


def _add_samples(parser: argparse.ArgumentParser, counted: str) -> None:
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, help=f"maximum number of {counted} ({SAMPLES})"
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the resampling for confidence intervals (0)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def _gradients(args: argparse.Namespace) -> ExitCode:
    if len(args.checkpoint) > 1:
        raise UserError("--checkpoint: gradients can be measured in only one model at a time")
    return _analyze("measure_gradients", args)


def _autocorrelation(args: argparse.Namespace) -> ExitCode:
    return _analyze("measure_autocorrelation", args)


def _distance(args: argparse.Namespace) -> ExitCode:
    if args.data is not None and len(args.data) > 1:
        raise UserError("--data: distances can be measured on only one source at a time")
    if args.prompts is None and (args.tasks or args.lengths):
        raise UserError("--tasks and --lengths only apply to --prompts")
    if args.prompts is not None and args.tokens:
        raise UserError("--tokens only applies to --data; --lengths chooses prompts")
    return _analyze("measure_distances", args)


def _maps(args: argparse.Namespace) -> ExitCode:
    return _analyze("draw_maps", args)


def _analyze(measurement: str, args: argparse.Namespace) -> ExitCode:
    """Run a function of `cli.measurements`, then publish its files and print its results."""
    for name in _COUNTS:
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    check_final(args.out)
    if args.out.exists():
        raise UserError(f"{args.out}: already exists", hint="Choose another --out.")
    hide_library_bars()
    provenance = collect_provenance(["amnesia", *sys.argv[1:]], seeds={"resampling": args.seed})
    try:
        measurements = import_module("amnesia_bench.cli.measurements")  # imports torch
    except ImportError as error:
        raise MissingEnvironmentError(
            f"analyze needs torch and transformers ({error}).",
            hint='pip install "amnesia-bench[eval]"',
        ) from error
    with TerminalProgress("texts") as progress:
        analysis = getattr(measurements, measurement)(args, progress)
    analysis.publish(args.out, provenance)
    for sentence in analysis.sentences:
        say(sentence)
    figures = (f"{name}.svg" for name in analysis.figures)
    say(f"{args.out}: {', '.join([*analysis.records, *figures])}")
    return ExitCode.DONE


SUBCOMMANDS: Mapping[str, Subcommand] = {
    "gradients": Subcommand(
        "how far gradients reach back through attention", _add_gradients_arguments, _gradients
    ),
    "autocorrelation": Subcommand(
        "how soon tokens of a text are repeated", _add_autocorrelation_arguments, _autocorrelation
    ),
    "distance": Subcommand(
        "attention distance of each head, and its change", _add_distance_arguments, _distance
    ),
    "maps": Subcommand("attention maps of single heads", _add_maps_arguments, _maps),
}
