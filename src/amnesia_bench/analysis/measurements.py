"""The measurements of `analyze`: one function per kind, which returns records and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from amnesia_bench.analysis.autocorrelation import autocorrelations
from amnesia_bench.analysis.distance import (
    MeasuredHeads,
    Prompt,
    attention_maps,
    distance_shift,
    head_distances,
)
from amnesia_bench.analysis.divergence import divergence_on, weight_changes
from amnesia_bench.analysis.gradients import check_distance, gradients_by_distance
from amnesia_bench.analysis.inputs import needle_prompts, open_stores, prompts_of
from amnesia_bench.analysis.models import open_model
from amnesia_bench.analysis.texts import (
    equal_texts,
    shortened_texts,
    trained_texts,
    with_targets_of,
)
from amnesia_bench.drawing.attention_figures import (
    autocorrelation_figure,
    distance_figure,
    gradient_figure,
)
from amnesia_bench.drawing.attention_map_figure import map_figure
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.attention import Autocorrelation, DistanceShift, PooledAttention
from amnesia_bench.requests.analysis import (
    AttentionMaps,
    Autocorrelations,
    Distances,
    Divergence,
    Gradients,
)
from amnesia_bench.surgery.head_drift import query_head_drift

_HEADS_DRAWN = 1


class MeasurementProgress(Protocol):
    """Shows the progress of a measurement."""

    def say(self, line: str) -> None:
        """Show a line of text."""

    def count(self, done: int, total: int) -> None:
        """Show the number of finished texts or prompts."""


class Silence:
    """Shows no progress."""

    def say(self, line: str) -> None:
        """Show nothing."""

    def count(self, done: int, total: int) -> None:
        """Show nothing."""


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The results of a measurement.

    Attributes:
        records: records to write as JSON, by file name without suffix.
        figures: SVG figures to write, by file name without suffix.
        parents: manifest entries of the inputs.
        sentences: the most important results, in words.
    """

    records: Mapping[str, object]
    figures: Mapping[str, str]
    parents: Sequence[Parent]
    sentences: Sequence[str]


def measure_gradients(analysis: Gradients, seed: int, progress: MeasurementProgress) -> Analysis:
    """Measure |dL/ds| by distance on the texts of each source, at the first source's targets."""
    tokens, max_distance = analysis.tokens, analysis.largest_distance
    check_distance(tokens, max_distance)
    stores = open_stores(analysis.data, [analysis.checkpoint])
    sources = {
        name: equal_texts(store, name, tokens, analysis.samples)
        for name, (store, _) in stores.items()
    }
    first = next(iter(sources.values()))
    model, parent = open_model(analysis.checkpoint, analysis.role)
    records, sentences = {}, []
    for name, own in sources.items():
        # Targets that come late in a text have more far keys: sources with other targets would
        # differ in reach even if the model had random weights.
        texts = own if own is first else with_targets_of(own, first)
        progress.say(f"{name}: {len(texts.taken)} texts of {tokens} tokens")
        parents = (parent, stores[name][1])
        rng = np.random.default_rng(seed)
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


def measure_autocorrelation(
    analysis: Autocorrelations, seed: int, progress: MeasurementProgress
) -> Analysis:
    """Measure by distance how much likelier than by chance a token of each source recurs."""
    records: dict[str, Autocorrelation] = {}
    by_reading: dict[str, list[Autocorrelation]] = {}
    sentences = []
    for name, (store, parent) in open_stores(analysis.data).items():
        texts = trained_texts(store, name, longer_than=analysis.max_distance)
        progress.say(f"{name}: {len(texts.taken)} texts")
        rng = np.random.default_rng(seed)
        for record in autocorrelations(texts, analysis.max_distance, parent, rng):
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


def measure_distances(analysis: Distances, seed: int, progress: MeasurementProgress) -> Analysis:
    """Measure the attention distance of every head in each checkpoint, and its change."""
    prompts, inputs = prompts_of(analysis)
    return _distances(analysis.checkpoints, prompts, inputs, seed, progress)


def draw_maps(analysis: AttentionMaps, seed: int, progress: MeasurementProgress) -> Analysis:
    """Draw the attention maps of the chosen heads, or of the head that the distances choose."""
    folders = analysis.checkpoints
    prompts, inputs = needle_prompts(analysis.prompts, folders)
    measured = Analysis(records={}, figures={}, parents=[inputs], sentences=[])
    if analysis.heads is not None:
        heads = list(dict.fromkeys(analysis.heads))
    else:
        measured = _distances(folders, prompts, inputs, seed, progress)
        second = list(folders)[1]
        shift = measured.records[f"shift_{second}"]
        assert isinstance(shift, DistanceShift)
        heads = list(shift.most_shortened(_HEADS_DRAWN))
    records, figures = dict(measured.records), dict(measured.figures)
    parents = list(measured.parents)
    maps: list[PooledAttention] = []
    for role, folder in folders.items():
        model, parent = open_model(folder, role)
        parents.append(parent)
        maps += attention_maps(model, prompts[0], heads, analysis.size, role, (parent, inputs))
        del model
    for layer, head in heads:
        head_maps = [record for record in maps if (record.layer, record.head) == (layer, head)]
        records |= {f"map_{layer}_{head}_{record.role}": record for record in head_maps}
        figures[f"map_{layer}_{head}"] = map_figure(head_maps)
    names = ", ".join(f"{layer}.{head}" for layer, head in heads)
    return Analysis(
        records=records,
        figures=figures,
        parents=parents,
        sentences=[*measured.sentences, f"Heads drawn: {names}."],
    )


def _distances(
    folders: Mapping[str, Path],
    prompts: Sequence[Prompt],
    inputs: Parent,
    seed: int,
    progress: MeasurementProgress,
) -> Analysis:
    measured: list[MeasuredHeads] = []
    for role, folder in folders.items():
        model, parent = open_model(folder, role)
        progress.say(f"{role}: {len(prompts)} prompts")
        measured.append(head_distances(model, prompts, role, (parent, inputs), progress.count))
        del model
    first, *others = measured
    (_, origin), *targets = folders.items()
    shifts = [
        distance_shift(first, other, query_head_drift(origin, folder), np.random.default_rng(seed))
        for other, (_, folder) in zip(others, targets, strict=True)
    ]
    distances = [heads.record for heads in measured]
    records: dict[str, object] = {f"distance_{record.role}": record for record in distances}
    return Analysis(
        records=records | {f"shift_{shift.second}": shift for shift in shifts},
        figures={"distance": distance_figure(distances, shifts)},
        parents=[*(record.checkpoint for record in distances), inputs],
        sentences=[
            f"{shift.second} compared with {shift.first}: layer {shift.layers[0].layer} changed "
            f"most, {shift.layers[0].shortened} of its {shift.layers[0].heads} heads attend less "
            "far back."
            for shift in shifts
        ],
    )


def measure_divergence(analysis: Divergence, seed: int, progress: MeasurementProgress) -> Analysis:
    """Measure KL(pre || post) on texts, and how far the weights moved."""
    folders = {"pre": analysis.pre, "post": analysis.post}
    ((name, (store, data)),) = open_stores(analysis.data, folders.values()).items()
    texts = shortened_texts(store, name, analysis.tokens, analysis.samples)
    changes = weight_changes(analysis.pre, analysis.post)
    (pre, pre_parent), (post, post_parent) = (
        open_model(folder, role) for role, folder in folders.items()
    )
    progress.say(f"{name}: {len(texts.taken)} texts")
    record = divergence_on(
        (pre, post),
        texts,
        changes,
        (pre_parent, post_parent, data),
        np.random.default_rng(seed),
        progress.count,
    )
    return Analysis(
        records={"divergence": record},
        figures={},
        parents=[pre_parent, post_parent, data],
        sentences=[
            f"KL(pre || post) on {name}: {record.divergence.value:.3g} nats per token (n = "
            f"{record.n} texts); the weights moved by {100 * record.weight_change:.2g} %, W_Q and "
            f"W_K of softmax layers by {100 * record.routing_change:.2g} %."
        ],
    )
