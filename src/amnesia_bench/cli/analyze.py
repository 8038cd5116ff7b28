r"""Measure why recall is lost: where gradients and attention reach (Figures 3, 4 and 7).

  amnesia analyze autocorrelation --data chains=data/cot --data prose=data/prose --out figure3a
  amnesia analyze gradients --checkpoint PRE --data chains=data/cot --data prose=data/prose \
      --tokens 1024 --out figure3b
  amnesia analyze distance --checkpoint pre=PRE --checkpoint post=POST --prompts niah/ --out shift
  amnesia analyze maps --checkpoint pre=PRE --checkpoint post=POST --checkpoint restored=FIXED \
      --prompts niah/ --lengths 8192 --out figure4

`autocorrelation` needs no model: how much likelier than by chance a token comes again. `gradients`
is |dL/ds| of the attention logits by distance. `distance` is the mean attention distance of every
head (Eq. 17), on prompts or on texts, and what changed from the first checkpoint on. `maps` shows
the heads whose distance fell most from the first checkpoint to the second, or those of --heads.

--data takes what `amnesia data prepare` wrote, --prompts what `amnesia niah build` wrote. Writes
records as JSON and figures as SVG. Attention must go through transformers' attention interface.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from amnesia_bench.cli.analyze_inputs import (
    check_tokenizer,
    heads_of,
    labelled,
    needle_prompts,
    open_stores,
    parent_of_data,
    text_prompts,
)
from amnesia_bench.errors import ExitCode, MissingEnvironmentError, UserError

if TYPE_CHECKING:
    from amnesia_bench.analysis.distance import MeasuredHeads, Prompt
    from amnesia_bench.cli.progress import TerminalProgress
    from amnesia_bench.records.artifacts import Parent
    from amnesia_bench.records.attention import Autocorrelation, DistanceShift, PooledAttention

SAMPLES, TOKENS, MAX_DISTANCE, SIZE, HEADS = 64, 1024, 512, 256, 1
# Which action takes which option; all take --out and --seed.
_TAKES = {
    "gradients": ("checkpoint", "data", "tokens", "max_distance", "samples"),
    "autocorrelation": ("data", "max_distance"),
    "distance": ("checkpoint", "data", "tokens", "prompts", "tasks", "lengths", "samples"),
    "maps": ("checkpoint", "prompts", "tasks", "lengths", "samples", "heads", "size"),
}


@dataclass(frozen=True, kw_only=True)
class _Analysis:
    """What is written: records and figures by file name, and what they were made of."""

    records: Mapping[str, object]
    figures: Mapping[str, str]
    parents: Sequence[Parent]
    sentences: Sequence[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=tuple(_TAKES), help="see above")
    parser.add_argument(
        "--checkpoint",
        action="append",
        metavar="[ROLE=]DIR",
        help="checkpoint folder, as pre, post or restored; distance and maps take several",
    )
    parser.add_argument(
        "--data", action="append", metavar="[NAME=]DIR", help="prepared data; may be given often"
    )
    parser.add_argument("--prompts", type=Path, metavar="DIR", help="prompts with needles")
    parser.add_argument("--tasks", help="of --prompts (all)")
    parser.add_argument("--lengths", help="of --prompts, in tokens (all)")
    parser.add_argument(
        "--samples", type=int, help=f"maximum number of texts or prompts ({SAMPLES})"
    )
    parser.add_argument("--tokens", type=int, help=f"length that every text is cut to ({TOKENS})")
    parser.add_argument(
        "--max-distance", type=int, help=f"largest distance, in tokens ({MAX_DISTANCE})"
    )
    parser.add_argument(
        "--heads", help="heads to draw, as LAYER.HEAD,... (those whose distance fell most)"
    )
    parser.add_argument("--size", type=int, help=f"rows and columns of a map ({SIZE})")
    parser.add_argument("--seed", type=int, default=0, help="seed of the intervals (0)")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> ExitCode:
    from amnesia_bench.cli.output import say
    from amnesia_bench.cli.progress import TerminalProgress
    from amnesia_bench.store.layout import check_final
    from amnesia_bench.store.provenance import collect_provenance

    _check_options(args)
    check_final(args.out)
    if args.out.exists():
        raise UserError(f"{args.out}: already exists", hint="Choose another --out.")
    progress = TerminalProgress("texts")
    provenance = collect_provenance(["amnesia", *sys.argv[1:]], seeds={"resampling": args.seed})
    try:
        from amnesia_bench.analysis.artifact import write_analysis

        action = {
            "gradients": _gradients,
            "autocorrelation": _autocorrelation,
            "distance": _distance,
            "maps": _maps,
        }[args.action]
        with progress:
            found = action(args, progress)
    except ImportError as error:
        raise MissingEnvironmentError(
            f"analyze needs torch and transformers ({error}).",
            hint='pip install "amnesia-bench[eval]"',
        ) from error
    write_analysis(args.out, found.records, found.figures, found.parents, provenance)
    for sentence in found.sentences:
        say(sentence)
    say(f"{args.out}: {', '.join([*found.records, *(f'{name}.svg' for name in found.figures)])}")
    return ExitCode.DONE


def _check_options(args: argparse.Namespace) -> None:
    takes = _TAKES[args.action]
    for options in _TAKES.values():
        for option in options:
            if option not in takes and getattr(args, option) is not None:
                name = option.replace("_", "-")
                raise UserError(
                    f"--{name} does not belong to `amnesia analyze {args.action}`",
                    hint=f"It takes {', '.join('--' + each.replace('_', '-') for each in takes)}.",
                )
    for option in ("samples", "tokens", "max_distance", "size"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} {value}: must be at least 1")
    if "checkpoint" in takes and not args.checkpoint:
        raise UserError("--checkpoint is missing: which model is measured?")
    _check_inputs(args)


def _check_inputs(args: argparse.Namespace) -> None:
    data, prompts = args.data or (), args.prompts
    if args.action in ("gradients", "autocorrelation") and not data:
        raise UserError("--data is missing: a folder that `amnesia data prepare` wrote")
    if args.action == "gradients" and len(args.checkpoint) > 1:
        raise UserError("--checkpoint: gradients are measured in one model at a time")
    if args.action == "maps" and prompts is None:
        raise UserError("--prompts is missing: a folder that `amnesia niah build` wrote")
    if args.action == "distance":
        if (prompts is None) == (not data):
            raise UserError("give either --prompts or --data, to measure distances on")
        if len(data) > 1:
            raise UserError("--data: distances are measured on one source at a time")
        if prompts is None and (args.tasks or args.lengths):
            raise UserError("--tasks and --lengths belong to --prompts")
        if prompts is not None and args.tokens:
            raise UserError("--tokens belongs to --data; prompts are chosen by --lengths")


def _gradients(args: argparse.Namespace, progress: TerminalProgress) -> _Analysis:
    import numpy as np

    from amnesia_bench.analysis.gradients import check_distance, gradients_by_distance
    from amnesia_bench.analysis.models import open_model
    from amnesia_bench.analysis.texts import equal_texts
    from amnesia_bench.report.attention_figures import gradient_figure

    tokens = args.tokens or TOKENS
    max_distance = args.max_distance or min(MAX_DISTANCE, tokens // 2)
    check_distance(tokens, max_distance)
    ((role, folder),) = labelled(args.checkpoint, "checkpoint").items()
    stores = open_stores(args.data)
    sources = {n: equal_texts(s, n, tokens, args.samples or SAMPLES) for n, s in stores.items()}
    for store in stores.values():
        check_tokenizer(store, folder)
    model, parent = open_model(folder, role)
    records, sentences = {}, []
    for name, texts in sources.items():
        progress.say(f"{name}: {len(texts.taken)} texts of {tokens} tokens")
        parents = (parent, parent_of_data(name, stores[name]))
        rng = np.random.default_rng(args.seed)
        found = gradients_by_distance(model, texts, max_distance, parents, rng, progress.count)
        records[f"gradients_{name}"] = found
        half = found.reach.half.value
        sentences.append(f"{name}: half of all |dL/ds| lies within {half:.0f} tokens.")
    return _Analysis(
        records=records,
        figures={"gradients": gradient_figure(list(records.values()))},
        parents=[parent, *(found.data for found in records.values())],
        sentences=sentences,
    )


def _autocorrelation(args: argparse.Namespace, progress: TerminalProgress) -> _Analysis:
    import numpy as np

    from amnesia_bench.analysis.autocorrelation import autocorrelations
    from amnesia_bench.analysis.texts import trained_texts
    from amnesia_bench.report.attention_figures import autocorrelation_figure

    max_distance = args.max_distance or MAX_DISTANCE
    records: dict[str, Autocorrelation] = {}
    by_reading: dict[str, list[Autocorrelation]] = {}
    sentences = []
    for name, store in open_stores(args.data).items():
        texts = trained_texts(store, name, longer_than=max_distance)
        progress.say(f"{name}: {len(texts.taken)} texts")
        rng = np.random.default_rng(args.seed)
        for found in autocorrelations(texts, max_distance, parent_of_data(name, store), rng):
            records[f"{found.reading}_{name}"] = found
            by_reading.setdefault(found.reading, []).append(found)
            decay = "none" if found.fit is None else f"1/e in {found.fit.scale_tokens:.3g} tokens"
            sentences.append(f"{name}, {found.reading}: {decay} (n = {found.n}).")
    return _Analysis(
        records=records,
        figures={name: autocorrelation_figure(found) for name, found in by_reading.items()},
        parents=[found.data for found in records.values()],
        sentences=sentences,
    )


def _distance(args: argparse.Namespace, progress: TerminalProgress) -> _Analysis:
    from amnesia_bench.report.attention_figures import distance_figure

    folders = labelled(args.checkpoint, "checkpoint")
    if args.prompts:
        prompts, inputs = needle_prompts(args, folders, SAMPLES)
    else:
        tokens, samples = args.tokens or TOKENS, args.samples or SAMPLES
        prompts, inputs = text_prompts(args.data, folders, tokens, samples)
    measured = [
        _measured(role, folder, prompts, inputs, progress) for role, folder in folders.items()
    ]
    shifts = _shifts(measured, args.seed)
    records: dict[str, object] = {f"distance_{e.record.role}": e.record for e in measured}
    records |= {f"shift_{each.second}": each for each in shifts}
    return _Analysis(
        records=records,
        figures={"distance": distance_figure([each.record for each in measured], shifts)},
        parents=[*(each.record.checkpoint for each in measured), inputs],
        sentences=[
            f"{each.second} against {each.first}: layer {each.layers[0].layer} first, "
            f"{each.layers[0].shortened} of {each.layers[0].heads} heads look less far."
            for each in shifts
        ],
    )


def _maps(args: argparse.Namespace, progress: TerminalProgress) -> _Analysis:
    from amnesia_bench.analysis.distance import attention_maps
    from amnesia_bench.analysis.models import open_model
    from amnesia_bench.report.attention_map_figure import map_figure

    folders = labelled(args.checkpoint, "checkpoint")
    prompts, inputs = needle_prompts(args, folders, SAMPLES)
    records: dict[str, object] = {}
    if args.heads is not None:
        heads = heads_of(args.heads)
    elif len(folders) < 2:
        raise UserError(
            "--heads is missing: with one checkpoint no head can have looked less far than before",
            hint="Give --heads 33.8 or a second --checkpoint.",
        )
    else:
        pair = list(folders.items())[:2]
        both = [_measured(role, folder, prompts, inputs, progress) for role, folder in pair]
        (shift,) = _shifts(both, args.seed)
        records[f"shift_{shift.second}"] = shift
        heads = list(shift.most_shortened(HEADS))
    parents: list[Parent] = [inputs]
    found: list[PooledAttention] = []
    for role, folder in folders.items():
        model, parent = open_model(folder, role)
        parents.append(parent)
        size = args.size or SIZE
        found += attention_maps(model, prompts[0], heads, size, role, (parent, inputs))
        del model
    figures = {}
    for layer, head in heads:
        mine = [each for each in found if (each.layer, each.head) == (layer, head)]
        records |= {f"map_{layer}_{head}_{each.role}": each for each in mine}
        figures[f"map_{layer}_{head}"] = map_figure(mine)
    named = ", ".join(f"{layer}.{head}" for layer, head in heads)
    return _Analysis(
        records=records, figures=figures, parents=parents, sentences=[f"Heads drawn: {named}."]
    )


def _measured(
    role: str, folder: Path, prompts: Sequence[Prompt], inputs: Parent, progress: TerminalProgress
) -> MeasuredHeads:
    from amnesia_bench.analysis.distance import head_distances
    from amnesia_bench.analysis.models import open_model

    model, parent = open_model(folder, role)
    progress.say(f"{role}: {len(prompts)} prompts")
    return head_distances(model, prompts, role, (parent, inputs), progress.count)


def _shifts(measured: Sequence[MeasuredHeads], seed: int) -> list[DistanceShift]:
    import numpy as np

    from amnesia_bench.analysis.distance import distance_shift

    return [distance_shift(measured[0], e, np.random.default_rng(seed)) for e in measured[1:]]
