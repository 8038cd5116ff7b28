"""The measurements of `amnesia analyze`: one function per sub-command, which returns results."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from amnesia_bench.analysis import MAX_DISTANCE, TOKENS
from amnesia_bench.analysis.artifact import write_analysis
from amnesia_bench.analysis.autocorrelation import autocorrelations
from amnesia_bench.analysis.distance import (
    MeasuredHeads,
    Prompt,
    attention_maps,
    distance_shift,
    head_distances,
)
from amnesia_bench.analysis.gradients import check_distance, gradients_by_distance
from amnesia_bench.analysis.models import open_model
from amnesia_bench.analysis.texts import equal_texts, trained_texts
from amnesia_bench.cli.analyze_inputs import (
    check_tokenizer,
    labelled,
    needle_prompts,
    open_stores,
    parent_of_data,
    parse_heads,
    text_prompts,
)
from amnesia_bench.cli.progress import TerminalProgress
from amnesia_bench.errors import UserError
from amnesia_bench.records.artifacts import Parent, Provenance
from amnesia_bench.records.attention import Autocorrelation, DistanceShift, PooledAttention
from amnesia_bench.reporting.attention_figures import (
    autocorrelation_figure,
    distance_figure,
    gradient_figure,
)
from amnesia_bench.reporting.attention_map_figure import map_figure

_HEADS_DRAWN = 1


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The results of a measurement.

    Attributes:
        records: records to write as JSON, by file name without suffix.
        figures: SVG figures to write, by file name without suffix.
        parents: manifest entries of the inputs.
        sentences: sentences to print.
    """

    records: Mapping[str, object]
    figures: Mapping[str, str]
    parents: Sequence[Parent]
    sentences: Sequence[str]

    def publish(self, out: Path, provenance: Provenance) -> None:
        """Write the records and figures to the folder `out`, atomically; see `write_analysis`."""
        write_analysis(out, self.records, self.figures, self.parents, provenance)


def measure_gradients(args: argparse.Namespace, progress: TerminalProgress) -> Analysis:
    tokens = args.tokens or TOKENS
    max_distance = args.max_distance or min(MAX_DISTANCE, tokens // 2)
    check_distance(tokens, max_distance)
    ((role, folder),) = labelled(args.checkpoint, "checkpoint").items()
    stores = open_stores(args.data)
    sources = {n: equal_texts(s, n, tokens, args.samples) for n, s in stores.items()}
    for store in stores.values():
        check_tokenizer(store, folder)
    model, parent = open_model(folder, role)
    records, sentences = {}, []
    for name, texts in sources.items():
        progress.say(f"{name}: {len(texts.taken)} texts of {tokens} tokens")
        parents = (parent, parent_of_data(name, stores[name]))
        rng = np.random.default_rng(args.seed)
        record = gradients_by_distance(model, texts, max_distance, parents, rng, progress.count)
        records[f"gradients_{name}"] = record
        half = record.reach.half.value
        sentences.append(f"{name}: half of the total |dL/ds| comes from within {half:.0f} tokens.")
    return Analysis(
        records=records,
        figures={"gradients": gradient_figure(list(records.values()))},
        parents=[parent, *(record.data for record in records.values())],
        sentences=sentences,
    )


def measure_autocorrelation(args: argparse.Namespace, progress: TerminalProgress) -> Analysis:
    max_distance = args.max_distance or MAX_DISTANCE
    records: dict[str, Autocorrelation] = {}
    by_reading: dict[str, list[Autocorrelation]] = {}
    sentences = []
    for name, store in open_stores(args.data).items():
        texts = trained_texts(store, name, longer_than=max_distance)
        progress.say(f"{name}: {len(texts.taken)} texts")
        rng = np.random.default_rng(args.seed)
        for record in autocorrelations(texts, max_distance, parent_of_data(name, store), rng):
            records[f"{record.reading}_{name}"] = record
            by_reading.setdefault(record.reading, []).append(record)
            fit = record.fit
            decay = "no decay" if fit is None else f"decays to 1/e in {fit.scale_tokens:.3g} tokens"
            sentences.append(f"{name}, {record.reading}: {decay} (n = {record.n}).")
    return Analysis(
        records=records,
        figures={name: autocorrelation_figure(curves) for name, curves in by_reading.items()},
        parents=[record.data for record in records.values()],
        sentences=sentences,
    )


def measure_distances(args: argparse.Namespace, progress: TerminalProgress) -> Analysis:
    folders = labelled(args.checkpoint, "checkpoint")
    if args.prompts:
        prompts, inputs = needle_prompts(args, folders)
    else:
        tokens, samples = args.tokens or TOKENS, args.samples
        prompts, inputs = text_prompts(args.data, folders, tokens, samples)
    measured = [
        _measured(role, folder, prompts, inputs, progress) for role, folder in folders.items()
    ]
    shifts = _shifts(measured, args.seed)
    distances = [heads.record for heads in measured]
    records: dict[str, object] = {f"distance_{record.role}": record for record in distances}
    records |= {f"shift_{shift.second}": shift for shift in shifts}
    return Analysis(
        records=records,
        figures={"distance": distance_figure(distances, shifts)},
        parents=[*(record.checkpoint for record in distances), inputs],
        sentences=[
            f"{shift.second} compared with {shift.first}: layer {shift.layers[0].layer} changed "
            f"most, {shift.layers[0].shortened} of its {shift.layers[0].heads} heads attend less "
            "far back."
            for shift in shifts
        ],
    )


def draw_maps(args: argparse.Namespace, progress: TerminalProgress) -> Analysis:
    folders = labelled(args.checkpoint, "checkpoint")
    prompts, inputs = needle_prompts(args, folders)
    records: dict[str, object] = {}
    if args.heads is not None:
        heads = parse_heads(args.heads)
    elif len(folders) < 2:
        raise UserError(
            "--heads is missing: choosing the head whose distance fell most needs two checkpoints",
            hint="Give --heads 33.8 or a second --checkpoint.",
        )
    else:
        pair = list(folders.items())[:2]
        both = [_measured(role, folder, prompts, inputs, progress) for role, folder in pair]
        (shift,) = _shifts(both, args.seed)
        records[f"shift_{shift.second}"] = shift
        heads = list(shift.most_shortened(_HEADS_DRAWN))
    parents: list[Parent] = [inputs]
    maps: list[PooledAttention] = []
    for role, folder in folders.items():
        model, parent = open_model(folder, role)
        parents.append(parent)
        maps += attention_maps(model, prompts[0], heads, args.size, role, (parent, inputs))
        del model
    figures = {}
    for layer, head in heads:
        head_maps = [record for record in maps if (record.layer, record.head) == (layer, head)]
        records |= {f"map_{layer}_{head}_{record.role}": record for record in head_maps}
        figures[f"map_{layer}_{head}"] = map_figure(head_maps)
    names = ", ".join(f"{layer}.{head}" for layer, head in heads)
    return Analysis(
        records=records, figures=figures, parents=parents, sentences=[f"Heads drawn: {names}."]
    )


def _measured(
    role: str, folder: Path, prompts: Sequence[Prompt], inputs: Parent, progress: TerminalProgress
) -> MeasuredHeads:
    model, parent = open_model(folder, role)
    progress.say(f"{role}: {len(prompts)} prompts")
    return head_distances(model, prompts, role, (parent, inputs), progress.count)


def _shifts(measured: Sequence[MeasuredHeads], seed: int) -> list[DistanceShift]:
    first, *others = measured
    return [distance_shift(first, other, np.random.default_rng(seed)) for other in others]
