"""Decide the claims about the cause of the loss, from gradients, attention and divergences.

Each claim is that an estimate is above 0. It holds if the 95 % bootstrap interval over its units is
above 0 and the randomisation test of the same units has p < 0.05; it does not hold if the interval
is below 0 and p < 0.05. With fewer than 6 units, there is not enough data. The units are texts,
heads or runs; heads are compared within a seed, since the heads of one training are not a sample of
other trainings, and the texts of all seeds are the same, so that they count once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypedDict

import numpy as np

from amnesia_bench.records.attention import GradientsByDistance, HeadDistances
from amnesia_bench.records.causes import CauseClaim, CauseCondition, Causes, ModelAnalysis
from amnesia_bench.records.claim_verdict import ClaimVerdict
from amnesia_bench.records.ids import AFTER_SFT, BEFORE_SFT, RECALL_METRIC
from amnesia_bench.reporting.cause_statistics import (
    better_predictor,
    correlation,
    mean_difference,
    share_returned,
)
from amnesia_bench.reporting.sources import CellEntry

CHAINS = "chains"
RESTORED = "restored"
_Pairs = dict[str, list[tuple[float, float]]]  # the values of the heads of each seed
_PairsOf = Callable[[ModelAnalysis], list[tuple[float, float]]]


class _Decided(TypedDict):
    conditions: tuple[CauseCondition, ...]
    verdict: ClaimVerdict


def decide_causes(analyses: Sequence[ModelAnalysis], entries: Sequence[CellEntry]) -> Causes:
    """Decide the claims about the cause.

    Args:
        analyses: the analyses of all models, fine-tunes and seeds.
        entries: the cells of the report; their recall is what the divergences are to predict.
    """
    claims = (
        CauseClaim(
            id="gradients-of-chains-reach-less",
            text="Gradients reach less far back in chains of thought than in other texts of equal "
            "length, from targets at equal positions.",
            measure="mean half reach of the other texts minus that of chains, in tokens; the half "
            "reach of a text is the distance that covers half of its total |dL/ds|; L is the loss "
            "of tokens at the same positions in both texts of a pair: the trained positions of "
            "the chain",
            unit="pairs of texts",
            **_combined(_reach_conditions(analyses)),
        ),
        CauseClaim(
            id="shortened-heads-lose-the-needle",
            text="Heads whose attention distance falls in SFT lose attention on the needle.",
            measure="rank correlation of the change of attention distance with the change of the "
            "total attention weight of the prompt's last query on the needle's tokens, which is "
            "not the retrieval score of rank-heads",
            unit="heads",
            **_combined(_head_conditions(analyses, _needle_pairs)),
        ),
        CauseClaim(
            id="drift-is-where-heads-shorten",
            text="W_Q and W_K drift more in heads whose attention distance falls more.",
            measure="rank correlation of the drift of W_Q and W_K with the fall of attention "
            "distance",
            unit="heads",
            **_combined(_head_conditions(analyses, _drift_pairs)),
        ),
        CauseClaim(
            id="divergence-predicts-loss",
            text="KL(pre || post) on the fine-tuning data predicts the lost recall better than the "
            "norm of the change of all weights.",
            measure="rank correlation of KL with lost recall minus that of |post - pre| / |pre|; "
            "recall is the mean over tasks at the longest context",
            unit="runs",
            **_combined(_prediction_condition(analyses, entries)),
        ),
        CauseClaim(
            id="restore-returns-attention",
            text="After the restore, attention distances are closer to those before SFT.",
            measure="share of the total change of attention distances that the restore undoes",
            unit="heads",
            **_combined(_return_conditions(analyses)),
        ),
    )
    return Causes(
        analyses=tuple(analyses), claims=tuple(claim for claim in claims if claim.conditions)
    )


def needle_masses(heads: HeadDistances) -> Mapping[tuple[int, int], float]:
    """Return the attention of the prompt's last query on the needle, by layer and head.

    It is the mean over prompts; heads measured on texts without needles have none. The retrieval
    score of `rank_heads` is another measure: how much of the answer a head copies.
    """
    return {
        (head.layer, head.head): head.needle_mass
        for head in heads.heads
        if head.needle_mass is not None
    }


def _combined(conditions: Iterable[CauseCondition]) -> _Decided:
    """Return the conditions of a claim and their common verdict."""
    decided = tuple(conditions)
    verdicts = {condition.verdict for condition in decided}
    if ClaimVerdict.DOES_NOT_HOLD in verdicts:
        verdict = ClaimVerdict.DOES_NOT_HOLD
    elif len(verdicts) == 1:
        (verdict,) = verdicts
    else:
        verdict = ClaimVerdict.NOT_SHOWN
    return {"conditions": decided, "verdict": verdict}


def _reach_conditions(analyses: Sequence[ModelAnalysis]) -> Iterable[CauseCondition]:
    by_model: defaultdict[tuple[str, str], list[tuple[GradientsByDistance, GradientsByDistance]]]
    by_model = defaultdict(list)
    for analysis in analyses:
        records = {record.source: record for record in analysis.gradients}
        chains = records.pop(CHAINS, None)
        for source, record in records.items():
            # Without equal positions of the targets, the reach differs before anything is learned.
            if chains is not None and chains.targets_of == record.targets_of:
                by_model[analysis.model, source].append((chains, record))
    for (model, source), measured in by_model.items():
        pairs = _half_reaches(measured)
        of_chains, of_others = np.mean(pairs, axis=0)
        note = (
            f"mean half reach {of_chains:.1f} tokens in {CHAINS} and {of_others:.1f} in {source}; "
            f"texts of {measured[0][0].tokens} tokens"
        )
        yield mean_difference(f"{model}: {source} compared with {CHAINS}", pairs, note)


def _half_reaches(
    measured: Sequence[tuple[GradientsByDistance, GradientsByDistance]],
) -> list[tuple[float, float]]:
    """Return the half reaches of pairs of texts, the mean over seeds that measured the same data.

    Text i of a source is paired with chain i, which has the same targets.
    """
    by_data: defaultdict[tuple[str, str], list[list[tuple[int, int]]]] = defaultdict(list)
    for chains, other in measured:
        pairs = zip(chains.text_half_reach, other.text_half_reach, strict=False)
        by_data[chains.data.identity, other.data.identity].append(list(pairs))
    return [
        (float(first), float(second))
        for seeds in by_data.values()
        for first, second in np.mean(seeds, axis=0)
    ]


def _head_conditions(
    analyses: Sequence[ModelAnalysis], pairs_of: _PairsOf
) -> Iterable[CauseCondition]:
    groups: defaultdict[tuple[str, str | None], _Pairs] = defaultdict(dict)
    for analysis in analyses:
        if pairs := pairs_of(analysis):
            groups[analysis.model, analysis.finetune][analysis.seed] = pairs
    for (model, finetune), by_seed in groups.items():
        heads = "; ".join(f"seed {seed}: {len(pairs)} heads" for seed, pairs in by_seed.items())
        yield correlation(f"{model}, {finetune}", by_seed, heads)


def _needle_pairs(analysis: ModelAnalysis) -> list[tuple[float, float]]:
    shift = analysis.shifts.get(AFTER_SFT)
    if shift is None or not {BEFORE_SFT, AFTER_SFT} <= analysis.distances.keys():
        return []
    pre, post = (needle_masses(analysis.distances[role]) for role in (BEFORE_SFT, AFTER_SFT))
    return [
        (head.shift.value, post[head.layer, head.head] - pre[head.layer, head.head])
        for head in shift.heads
        if (head.layer, head.head) in pre.keys() & post.keys()
    ]


def _drift_pairs(analysis: ModelAnalysis) -> list[tuple[float, float]]:
    shift = analysis.shifts.get(AFTER_SFT)
    heads = () if shift is None else shift.heads
    return [(head.drift, -head.shift.value) for head in heads if head.drift is not None]


def _return_conditions(analyses: Sequence[ModelAnalysis]) -> Iterable[CauseCondition]:
    groups: defaultdict[tuple[str, str | None], _Pairs] = defaultdict(dict)
    for analysis in analyses:
        post, restored = (analysis.shifts.get(role) for role in (AFTER_SFT, RESTORED))
        if post is not None and restored is not None:
            groups[analysis.model, analysis.finetune][analysis.seed] = [
                (abs(before.shift.value), abs(after.shift.value))
                for before, after in zip(post.heads, restored.heads, strict=True)
            ]
    for (model, finetune), by_seed in groups.items():
        before, after = np.concatenate([*by_seed.values()]).mean(axis=0)
        note = (
            f"mean distance from before SFT: {before:.3g} tokens after SFT, {after:.3g} after the "
            "restore"
        )
        yield share_returned(f"{model}, {finetune}", by_seed, note)


def _prediction_condition(
    analyses: Sequence[ModelAnalysis], entries: Sequence[CellEntry]
) -> Iterable[CauseCondition]:
    measured = [analysis for analysis in analyses if analysis.divergence is not None]
    if not measured:
        return
    runs = []
    for analysis in measured:
        lost = _lost_recall(analysis, entries)
        if lost is not None and (moved := analysis.divergence) is not None:
            runs.append((moved.divergence.value, moved.weight_change, lost))
    note = f"{len(measured)} runs have a divergence, {len(runs)} of them also recall"
    yield better_predictor("all runs", runs, note)


def _lost_recall(analysis: ModelAnalysis, entries: Sequence[CellEntry]) -> float | None:
    """Return the recall that a run lost at the longest context, the mean over tasks."""
    rows: dict[str, dict[tuple[str, int], float]] = {}
    methods = {BEFORE_SFT: BEFORE_SFT, AFTER_SFT: f"{AFTER_SFT}@{analysis.finetune}"}
    for role, method in methods.items():
        rows[role] = {
            (entry.cell.task, entry.cell.context_tokens): entry.cell.value
            for entry in entries
            if (entry.model, entry.method, entry.seed) == (analysis.model, method, analysis.seed)
            and entry.cell.metric == RECALL_METRIC
            and entry.cell.value is not None
            and entry.cell.context_tokens is not None
        }
    common = rows[BEFORE_SFT].keys() & rows[AFTER_SFT].keys()
    if not common:
        return None
    longest = max(length for _, length in common)
    lost = [rows[BEFORE_SFT][key] - rows[AFTER_SFT][key] for key in common if key[1] == longest]
    return float(np.mean(lost))
