"""Draw the figures on the cause of the loss (Figures 3, 4 and 7, and heads that changed)."""

from __future__ import annotations

from collections.abc import Iterator

from amnesia_bench.drawing.attention_figures import (
    autocorrelation_figure,
    distance_figure,
    gradient_figure,
)
from amnesia_bench.drawing.attention_map_figure import map_figure
from amnesia_bench.drawing.head_scatter import HeadChange, head_scatter
from amnesia_bench.records.attention import Autocorrelation, HeadDistances
from amnesia_bench.records.causes import Causes, ModelAnalysis
from amnesia_bench.records.ids import AFTER_SFT, BEFORE_SFT
from amnesia_bench.reporting.causes import needle_masses


def cause_figures(causes: Causes) -> dict[str, str]:
    """Return every figure of the analyses by name; the name contains model, fine-tune and seed."""
    figures: dict[str, str] = {}
    for analysis in causes.analyses:
        figures |= dict(figures_of_analysis(analysis))
    return figures


def figures_of_analysis(analysis: ModelAnalysis) -> Iterator[tuple[str, str]]:
    """Yield the names and drawings of the figures of one analysis."""
    parts = (analysis.model.replace("/", "_"), analysis.finetune, f"s{analysis.seed}")
    name = "why_" + "_".join(filter(None, parts))
    by_reading: dict[str, list[Autocorrelation]] = {}
    for record in analysis.autocorrelations:
        by_reading.setdefault(record.reading, []).append(record)
    for reading, records in by_reading.items():
        yield f"{name}_autocorrelation_{reading}", autocorrelation_figure(records)
    if analysis.gradients:
        yield f"{name}_gradients", gradient_figure(analysis.gradients)
    if analysis.distances:
        checkpoints = [*_by_role(analysis)]
        shifts = [
            analysis.shifts[each.role] for each in checkpoints if each.role in analysis.shifts
        ]
        yield f"{name}_distance", distance_figure(checkpoints, shifts)
        if changes := _head_changes(analysis):
            subject = f"{analysis.model}, {analysis.finetune}, seed {analysis.seed}"
            yield f"{name}_heads", head_scatter(changes, subject)
    for layer, head in dict.fromkeys((each.layer, each.head) for each in analysis.maps):
        maps = [each for each in analysis.maps if (each.layer, each.head) == (layer, head)]
        yield f"{name}_map_{layer}_{head}", map_figure(maps)


def _by_role(analysis: ModelAnalysis) -> Iterator[HeadDistances]:
    roles = (BEFORE_SFT, AFTER_SFT, *analysis.distances)
    for role in dict.fromkeys(roles):
        if role in analysis.distances:
            yield analysis.distances[role]


def _head_changes(analysis: ModelAnalysis) -> list[HeadChange]:
    shift = analysis.shifts.get(AFTER_SFT)
    if shift is None or BEFORE_SFT not in analysis.distances:
        return []
    pre, post = (needle_masses(analysis.distances[role]) for role in (BEFORE_SFT, AFTER_SFT))
    return [
        HeadChange(
            layer=head.layer,
            distance=head.shift.value,
            needle_mass=post[head.layer, head.head] - pre[head.layer, head.head],
        )
        for head in shift.heads
        if (head.layer, head.head) in pre.keys() & post.keys()
    ]
