"""Claims about the cause: what is put into the records decides them, and noise does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.attention import (
    BootstrapValue,
    DecayFit,
    DistanceCurve,
    DistanceShift,
    FinetuneDivergence,
    GradientsByDistance,
    HeadDistances,
    HeadReading,
    HeadShift,
    LayerShift,
    Reach,
    Tail,
)
from amnesia_bench.records.causes import CauseClaim, ModelAnalysis
from amnesia_bench.records.claim_verdict import ClaimVerdict
from amnesia_bench.records.evaluation import Cell
from amnesia_bench.records.report import Origin
from amnesia_bench.reporting.cause_figures import cause_figures
from amnesia_bench.reporting.cause_texts import causes_html, causes_markdown
from amnesia_bench.reporting.causes import decide_causes
from amnesia_bench.reporting.page import _SIGNS
from amnesia_bench.reporting.sources import CellEntry

HOLDS, FAILS = ClaimVerdict.HOLDS, ClaimVerdict.DOES_NOT_HOLD
OPEN, FEW = ClaimVerdict.NOT_SHOWN, ClaimVerdict.NOT_ENOUGH_DATA
HEADS = [(layer, head) for layer in (1, 3) for head in range(8)]


def parent(name: str) -> Parent:
    return Parent(role=name, location=name, identity=name)


def value(number: float) -> BootstrapValue:
    return BootstrapValue(value=number, interval=None)


def gradients(source: str, reaches: list[int], targets_of: str = "chains") -> GradientsByDistance:
    fit = DecayFit(amplitude=1.0, rate=value(0.1), r_squared=1.0, first=1, last=3)
    return GradientsByDistance(
        source=source,
        checkpoint=parent("pre"),
        data=parent(source),
        n=len(reaches),
        tokens=64,
        too_short=0,
        untrained=0,
        targets_of=targets_of,
        curve=DistanceCurve(first=0, mean=(1.0, 0.5, 0.3, 0.2), low=(), high=()),
        fit=fit,
        tail=Tail(near=fit, far=fit, excess=value(1.0)),
        reach=Reach(half=value(3), nine_tenths=value(9)),
        text_half_reach=tuple(reaches),
        layers=(),
        settings={},
    )


def attention(
    shifts: list[float], masses: list[float], drifts: list[float], returned: float, seed: str = "0"
) -> ModelAnalysis:
    """Heads whose distance shifts, with their masses on the needle after SFT and their drifts."""

    def distances(role: str, mass: list[float]) -> HeadDistances:
        heads = tuple(
            HeadReading(layer=layer, head=head, distance=50.0, entropy=1.0, needle_mass=m)
            for (layer, head), m in zip(HEADS, mass, strict=False)
        )
        return HeadDistances(
            role=role, checkpoint=parent(role), inputs=parent("prompts"), n=4, tokens=(99, 99),
            heads=heads, settings={},
        )  # fmt: skip

    def shift(role: str, share: float) -> DistanceShift:
        heads = tuple(
            HeadShift(layer=layer, head=head, shift=value(share * s), drift=d)
            for (layer, head), s, d in zip(HEADS, shifts, drifts, strict=False)
        )
        layers = tuple(
            LayerShift(layer=layer, shortened=shortened, heads=8, mean_shift=-2.0)
            for layer, shortened in ((1, 3), (3, 2))
        )
        return DistanceShift(first="pre", second=role, n=4, layers=layers, heads=heads)

    return ModelAnalysis(
        model="tiny",
        finetune="cot",
        seed=seed,
        distances={
            "pre": distances("pre", [0.5] * len(masses)),
            "post": distances("post", masses),
            "restored": distances("restored", masses),
        },
        shifts={"post": shift("post", 1.0), "restored": shift("restored", 1 - returned)},
    )


def run(finetune: str, seed: int, divergence: float, change: float) -> ModelAnalysis:
    moved = FinetuneDivergence(
        source="cot", pre=parent("pre"), post=parent("post"), data=parent("cot"), n=4, tokens=99,
        divergence=value(divergence), weight_change=change, routing_change=change, settings={},
    )  # fmt: skip
    return ModelAnalysis(
        model="tiny", finetune=finetune, seed=str(seed), distances={}, shifts={}, divergence=moved
    )


def recall(method: str, seed: int, share: float, length: int = 2048) -> CellEntry:
    cell = Cell(
        model="tiny", method=method, task="niah_single_3", context_tokens=length, metric="recall",
        value=share, n=10, repeats=1, stderr=0.1, interval=None, incomplete=None, settings={},
        parents=(),
    )  # fmt: skip
    origin = Origin(
        seed=str(seed), path="x", manifest_sha256=None, stage="x", commit=None, dirty=()
    )
    return CellEntry(
        model="tiny", method=method, seed=str(seed), cell=cell, path=Path("x"), artifact=None,
        origin=origin,
    )  # fmt: skip


def verdicts(
    *analyses: ModelAnalysis, entries: tuple[CellEntry, ...] = ()
) -> dict[str, CauseClaim]:
    return {claim.id: claim for claim in decide_causes(analyses, entries).claims}


def reach(seed: str, **sources: list[int]) -> ModelAnalysis:
    records = tuple(gradients(name, reaches) for name, reaches in sources.items())
    return ModelAnalysis(
        model="tiny", finetune=None, seed=seed, gradients=records, distances={}, shifts={}
    )


def test_a_shorter_reach_holds_a_longer_one_does_not_and_few_texts_are_not_enough() -> None:
    near, far, mixed = [4, 5, 6, 5, 4, 5, 6, 5], [14, 15, 16, 15, 14, 15, 16, 13], [5, 4, 6, 5] * 2
    claim = "gradients-of-chains-reach-less"
    assert verdicts(reach("0", chains=near, prose=far))[claim].verdict is HOLDS
    assert verdicts(reach("0", chains=far, prose=near))[claim].verdict is FAILS
    assert verdicts(reach("0", chains=near, prose=mixed))[claim].verdict is OPEN
    assert verdicts(reach("0", chains=near, prose=far[:5]))[claim].verdict is FEW
    both = verdicts(reach("0", chains=near, prose=far, instructions=mixed))[claim]
    assert [condition.verdict for condition in both.conditions] == [HOLDS, OPEN]
    assert both.verdict is OPEN
    (condition,) = verdicts(reach("0", chains=near, prose=far))[claim].conditions
    assert condition.estimate == pytest.approx(np.mean(far) - np.mean(near))
    assert condition.low is not None
    assert condition.high is not None
    assert condition.estimate is not None
    assert condition.low < condition.estimate < condition.high


def test_sources_with_other_targets_are_not_compared() -> None:
    records = (gradients("chains", [4] * 8), gradients("prose", [14] * 8, targets_of="prose"))
    analysis = ModelAnalysis(
        model="tiny", finetune=None, seed="0", gradients=records, distances={}, shifts={}
    )
    assert verdicts(analysis) == {}


def test_texts_that_several_seeds_measure_count_once() -> None:
    near, far = [4, 5, 6, 5, 4, 5], [14, 15, 16, 15, 14, 15]
    once = verdicts(reach("0", chains=near, prose=far))
    thrice = verdicts(*(reach(seed, chains=near, prose=far) for seed in "012"))
    claim = "gradients-of-chains-reach-less"
    assert thrice[claim].conditions == once[claim].conditions
    assert thrice[claim].conditions[0].n == 6


def test_heads_decide_retrieval_drift_and_the_way_back() -> None:
    shifts = [-float(i) for i in range(16)]
    losing = [0.5 - 0.02 * i for i in range(16)]
    drifts = [0.1 + 0.01 * i for i in range(16)]
    found = verdicts(attention(shifts, losing, drifts, returned=0.8))
    assert found["shortened-heads-lose-the-needle"].verdict is HOLDS
    assert found["drift-is-where-heads-shorten"].verdict is HOLDS
    (back,) = found["restore-returns-attention"].conditions
    assert back.verdict is HOLDS
    assert back.estimate == pytest.approx(0.8)
    against = verdicts(attention(shifts, losing[::-1], drifts[::-1], returned=-0.5))
    assert {claim.verdict for claim in against.values()} == {FAILS}
    few = verdicts(attention(shifts[:5], losing[:5], drifts[:5], returned=0.8))
    assert {claim.verdict for claim in few.values()} == {FEW}


def test_heads_are_compared_within_seeds() -> None:
    """Seeds with different levels correlate across seeds, but that says nothing about heads."""
    rng = np.random.default_rng(1)
    analyses = [
        attention(
            list(-10.0 * seed + rng.normal(size=16)),
            list(0.5 - 0.1 * seed + 0.001 * rng.normal(size=16)),
            list(0.1 + 0.1 * seed + 0.001 * rng.normal(size=16)),
            returned=0.5,
            seed=str(seed),
        )
        for seed in range(3)
    ]
    found = verdicts(*analyses)
    assert found["shortened-heads-lose-the-needle"].verdict is OPEN
    assert found["drift-is-where-heads-shorten"].verdict is OPEN
    assert len(found["drift-is-where-heads-shorten"].conditions[0].by_seed) == 3


def test_a_constant_measure_decides_nothing() -> None:
    found = verdicts(attention([-1.0] * 16, [0.5] * 16, [0.1] * 16, returned=0.0))
    assert found["shortened-heads-lose-the-needle"].verdict is OPEN
    assert found["shortened-heads-lose-the-needle"].conditions[0].estimate is None
    assert found["restore-returns-attention"].verdict is OPEN


def test_the_better_predictor_is_found_over_the_runs_that_have_recall() -> None:
    runs, entries = [], []
    rng = np.random.default_rng(0)
    for i in range(12):
        runs.append(run(f"tune{i}", 0, divergence=0.1 * i, change=rng.random()))
        entries.append(recall(f"post@tune{i}", 0, 0.9 - 0.05 * i))
        entries.append(recall(f"post@tune{i}", 0, 0.9, length=1024))
    entries += [recall("pre", 0, 0.9), recall("pre", 0, 0.9, length=1024)]
    claim = "divergence-predicts-loss"
    (condition,) = verdicts(*runs, entries=tuple(entries))[claim].conditions
    assert (condition.verdict, condition.n) == (HOLDS, 12)
    swapped = [
        run(f"tune{i}", 0, each.divergence.weight_change, each.divergence.divergence.value)
        for i, each in enumerate(runs)
        if each.divergence is not None
    ]
    assert verdicts(*swapped, entries=tuple(entries))[claim].verdict is FAILS
    (few,) = verdicts(*runs[:5], entries=tuple(entries))[claim].conditions
    assert (few.verdict, few.n) == (FEW, 5)
    (none,) = verdicts(*runs).values()
    assert none.conditions[0].note == "12 runs have a divergence, 0 of them also recall"
    assert (none.verdict, none.conditions[0].estimate) == (FEW, None)


def test_page_markdown_and_figures_say_the_verdicts_and_n() -> None:
    rng = np.random.default_rng(0)
    analyses = [
        reach("0", chains=[4] * 8, prose=[9] * 8),
        attention(list(rng.normal(size=16)), list(rng.random(16)), list(rng.random(16)), 0.5),
        attention(list(rng.normal(size=16)), list(rng.random(16)), list(rng.random(16)), 0.5, "1"),
    ]
    causes = decide_causes(analyses, ())
    page, text = causes_html(causes, _SIGNS), causes_markdown(causes)
    for claim in causes.claims:
        assert claim.text in text
        assert str(claim.verdict) in page
    assert "3 of 8" in page
    assert "| post | 1 | 1 | 3 of 8 | -2 |" in text
    assert page.count("<svg") == len(cause_figures(causes)) == 5
    assert page.index("other seeds") < page.index("seed 1</h3>")
    assert all("n = " in drawing for drawing in cause_figures(causes).values())
