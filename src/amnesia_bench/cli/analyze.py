r"""Measure why long-range recall is lost, and draw it (Figures 3, 4 and 7).

  amnesia analyze autocorrelation --data chains=data/cot --data prose=data/prose --out figure3a
  amnesia analyze gradients --checkpoint PRE --data chains=data/cot --data prose=data/prose \
      --tokens 1024 --out figure3b
  amnesia analyze distance --checkpoint pre=PRE --checkpoint post=POST --prompts niah/ --out shift
  amnesia analyze maps --checkpoint pre=PRE --checkpoint post=POST --checkpoint restored=FIXED \
      --prompts niah/ --length 8192 --out figure4
  amnesia analyze divergence --checkpoint pre=PRE --checkpoint post=POST --data chains=data/cot \
      --out divergence

`autocorrelation` measures by distance how much more likely than by chance a token is repeated; it
needs no model. `gradients` measures |dL/ds|, where s are the attention logits, by distance; the
loss of all texts is taken where the texts of the first --data have trained tokens.
`distance` measures the mean attention distance of every head (Eq. 17) on prompts or texts, and its
change from the first checkpoint to each of the others. `maps` draws the attention maps of the
heads in --heads, by default of the head whose distance fell most from the first to the second
checkpoint; it then also writes what `distance` does. `divergence` measures KL(pre || post) on
texts, and how far the weights moved.

--data is a folder that `amnesia data prepare` wrote; --prompts is a folder that
`amnesia niah build` wrote. The command writes records as JSON and figures as SVG. The model must
use the attention interface of transformers.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import amnesia_bench
from amnesia_bench.cli.command import Subcommand
from amnesia_bench.cli.niah_options import split_list
from amnesia_bench.cli.output import say
from amnesia_bench.cli.progress import TerminalProgress, hide_library_bars
from amnesia_bench.cli.requests import make
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.requests.analysis import (
    MAP_SIZE,
    MAX_DISTANCE,
    SAMPLES,
    TOKENS,
    AnalyzeRequest,
    AttentionAnalysis,
    AttentionMaps,
    Autocorrelations,
    Distances,
    Divergence,
    Gradients,
    NeedlePrompts,
)

_SEVERAL = "; repeat it for several, with roles such as pre, post, restored"
_OPTIONS = {"checkpoints": "--checkpoint", "folder": "--prompts"}


def _add_gradients_arguments(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint(parser)
    _add_data(
        parser,
        required=True,
        more="; repeat it for several, first the one whose trained tokens decide where the loss of "
        "all is taken",
    )
    _add_tokens(parser)
    _add_max_distance(parser, ", or half of --tokens if that is less")
    _add_samples(parser, "texts per source")
    _add_common(parser)


def _add_autocorrelation_arguments(parser: argparse.ArgumentParser) -> None:
    _add_data(parser, required=True, more="; repeat it for several")
    _add_max_distance(parser)
    _add_common(parser)


def _add_divergence_arguments(parser: argparse.ArgumentParser) -> None:
    _add_checkpoint(parser, ": pre=DIR and post=DIR")
    _add_data(parser, required=True)
    _add_tokens(parser)
    _add_samples(parser, "texts")
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
        "--size",
        type=int,
        default=MAP_SIZE,
        help=f"number of rows and columns of a map ({MAP_SIZE})",
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


def _add_data(parser: argparse._ActionsContainer, *, required: bool, more: str = "") -> None:
    parser.add_argument(
        "--data",
        action="append",
        required=required,
        metavar="[NAME=]DIR",
        help=f"folder of prepared data{more}",
    )


def _add_prompts(parser: argparse._ActionsContainer, *, required: bool) -> None:
    parser.add_argument(
        "--prompts", type=Path, required=required, metavar="DIR", help="folder of NIAH prompts"
    )


def _add_choice_of_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tasks", help="use only these tasks of --prompts, with one needle each (all)"
    )
    parser.add_argument(
        "--length", type=int, help="use only this length of --prompts, in tokens (the only one)"
    )


def _add_tokens(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tokens", type=int, help=f"length to which every text is truncated, in tokens ({TOKENS})"
    )


def _add_max_distance(parser: argparse.ArgumentParser, limit: str = "") -> None:
    parser.add_argument(
        "--max-distance", type=int, help=f"largest distance, in tokens ({MAX_DISTANCE}{limit})"
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


def _gradients(args: argparse.Namespace) -> AttentionAnalysis:
    _check_one("--checkpoint", args.checkpoint)
    ((role, folder),) = _labelled(args.checkpoint, "checkpoint").items()
    return make(
        Gradients,
        checkpoint=folder,
        role=role,
        data=_named_data(args.data),
        max_distance=args.max_distance,
        **_given(args, "tokens", "samples"),
    )


def _autocorrelation(args: argparse.Namespace) -> AttentionAnalysis:
    return make(Autocorrelations, data=_named_data(args.data), **_given(args, "max_distance"))


def _distance(args: argparse.Namespace) -> AttentionAnalysis:
    _check_one("--data", args.data or ())
    if args.prompts is None and (args.tasks or args.length):
        hint = "Leave them out, or pass --prompts DIR instead of --data."
        raise UserError("--tasks and --length only apply to --prompts", hint=hint)
    if args.prompts is not None and args.tokens:
        hint = f"To choose prompts: --length {args.tokens}"
        raise UserError("--tokens only applies to --data", hint=hint)
    return make(
        Distances,
        _OPTIONS,
        checkpoints=_labelled(args.checkpoint, "checkpoint"),
        prompts=None if args.prompts is None else _needle_prompts(args),
        data=_named_data(args.data or ()),
        **_given(args, "tokens", "samples"),
    )


def _maps(args: argparse.Namespace) -> AttentionAnalysis:
    return make(
        AttentionMaps,
        _OPTIONS,
        checkpoints=_labelled(args.checkpoint, "checkpoint"),
        prompts=_needle_prompts(args),
        heads=None if args.heads is None else _heads(args.heads),
        size=args.size,
    )


def _divergence(args: argparse.Namespace) -> AttentionAnalysis:
    folders = _labelled(args.checkpoint, "checkpoint")
    if set(folders) != {"pre", "post"}:
        raise UserError(
            "--checkpoint: a divergence is from one checkpoint to another",
            hint="--checkpoint pre=DIR --checkpoint post=DIR",
        )
    _check_one("--data", args.data)
    data = _named_data(args.data)
    return make(Divergence, **folders, data=data, **_given(args, "tokens", "samples"))


def _check_one(option: str, values: Sequence[str]) -> None:
    if len(values) > 1:
        raise UserError(
            f"{option}: given {len(values)} times, but this is measured for one at a time",
            hint=f"Run the command once per {option}, each with its own --out.",
        )


def _needle_prompts(args: argparse.Namespace) -> NeedlePrompts:
    return make(
        NeedlePrompts,
        _OPTIONS,
        folder=args.prompts,
        tasks=None if args.tasks is None else split_list(args.tasks),
        length=args.length,
        samples=args.samples,
    )


def _given(args: argparse.Namespace, *names: str) -> dict[str, object]:
    """Return the values of the options that were given; the request has the other defaults."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _labelled(values: Sequence[str], default: str) -> dict[str, Path]:
    """Parse values of the form [LABEL=]DIR, and return the folders by label, in the same order.

    A value without a label gets the label `default`.

    Raises:
        UserError: a label is repeated, or cannot be part of a file name.
    """
    folders: dict[str, Path] = {}
    for value in values:
        label, equals, folder = value.partition("=")
        if not equals:
            label, folder = default, value
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", label):
            raise UserError(
                f"{value!r}: {label!r} is not a valid label", hint="Use letters, digits, - and _."
            )
        if label in folders:
            raise UserError(
                f"{value!r}: {label} is given twice", hint="Give labels: pre=DIR post=DIR."
            )
        folders[label] = Path(folder)
    return folders


def _named_data(values: Sequence[str]) -> dict[str, Path]:
    """Parse values of the form [NAME=]DIR; data without a name have the name of their config.

    Raises:
        UserError: a folder without a name has no prepared data, or a name is given twice.
    """
    from amnesia_bench.data.sequence_store import open_store  # imports packages of the extras

    named = [
        value if "=" in value else f"{open_store(Path(value)).description.name}={value}"
        for value in values
    ]
    return _labelled(named, "")


def _heads(text: str) -> tuple[tuple[int, int], ...]:
    """Parse LAYER.HEAD,LAYER.HEAD,... into (layer, head) pairs.

    Raises:
        UserError: the text does not have this form.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d+\.\d+", part) for part in parts):
        raise UserError(f"--heads {text!r}: not a list of heads", hint="--heads 33.8,33.9")
    return tuple(dict.fromkeys((int(a), int(b)) for a, b in (part.split(".") for part in parts)))


def _analyze(
    parse: Callable[[argparse.Namespace], AttentionAnalysis], args: argparse.Namespace
) -> ExitCode:
    """Make the request of a sub-command, enter the front door and print the results."""
    hide_library_bars()
    request = make(AnalyzeRequest, analysis=parse(args), seed=args.seed)
    with TerminalProgress("texts") as progress:
        analysis = amnesia_bench.analyze(request, args.out, progress=progress)
    for sentence in analysis.sentences:
        say(sentence)
    figures = (f"{name}.svg" for name in analysis.figures)
    say(f"{args.out}: {', '.join([*analysis.records, *figures])}")
    return ExitCode.DONE


SUBCOMMANDS: Mapping[str, Subcommand] = {
    "gradients": Subcommand(
        "how far gradients reach back through attention",
        _add_gradients_arguments,
        partial(_analyze, _gradients),
    ),
    "autocorrelation": Subcommand(
        "how soon tokens of a text are repeated",
        _add_autocorrelation_arguments,
        partial(_analyze, _autocorrelation),
    ),
    "distance": Subcommand(
        "attention distance of each head, and its change",
        _add_distance_arguments,
        partial(_analyze, _distance),
    ),
    "maps": Subcommand(
        "attention maps of single heads", _add_maps_arguments, partial(_analyze, _maps)
    ),
    "divergence": Subcommand(
        "how far a fine-tune moved predictions and weights",
        _add_divergence_arguments,
        partial(_analyze, _divergence),
    ),
}
