"""Several seeds in one slot of a table: the seed is the sampling unit, and prompts are below it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from amnesia_bench.reasoning.problem_statistics import mean_estimate
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.evaluation import Cell
from amnesia_bench.records.report import Origin
from amnesia_bench.reporting.pooling import SlotCells, common_answers
from amnesia_bench.reporting.sources import CellEntry
from amnesia_bench.reporting.tables import paired_test
from amnesia_bench.statistics.intervals import wilson
from amnesia_bench.statistics.over_seeds import BOOTSTRAP_METHOD

Values = Mapping[str | None, Sequence[float]]


def placed(by_seed: Values, *, shared: bool, answers: bool = True, repeats: int = 1) -> SlotCells:
    """Return a place of these answers; seeds that do not share prompts have others of their own."""
    cells, known = [], {}
    for seed, values in by_seed.items():
        identity = "same" if shared else f"of {seed}"
        found = mean_estimate(values)
        cell = Cell(
            model="tiny",
            method="post",
            task="t",
            context_tokens=None,
            metric="m",
            value=found.value,
            n=found.n,
            repeats=repeats,
            stderr=found.stderr,
            interval=found.interval,
            incomplete=None,
            settings={},
            parents=(Parent(role="prompts", location="x", identity=identity),),
        )
        origin = Origin(
            seed=seed,
            path="c",
            manifest_sha256=None,
            stage="s",
            commit=None,
            dirty=(),
        )
        cells.append(
            CellEntry(
                model="tiny",
                method="post",
                seed=seed,
                cell=cell,
                path=Path(),
                artifact=None,
                origin=origin,
            )
        )
        known |= {(seed, identity, doc): value for doc, value in enumerate(values)}
    return SlotCells(tuple(cells), known if answers else {})


def coin(seed: int, n: int = 200, chance: float = 0.7) -> list[float]:
    return (np.random.default_rng(seed).random(n) < chance).astype(float).tolist()


def test_seeds_with_prompts_of_their_own_are_one_large_cell() -> None:
    seeds = {str(i): coin(i) for i in range(3)}
    pooled = placed(seeds, shared=False)
    right = int(sum(map(sum, seeds.values())))
    assert (pooled.n, pooled.prompts) == (600, 600)
    assert pooled.value == pytest.approx(right / 600)
    over_prompts = wilson(right, 600)
    assert pooled.interval is not None
    assert pooled.interval.method == BOOTSTRAP_METHOD
    assert pooled.interval.low <= over_prompts.low
    assert pooled.interval.high >= over_prompts.high


def test_seeds_that_differ_widen_the_interval_however_many_prompts_there_are() -> None:
    apart = {"0": coin(0, 400, 0.9), "1": coin(1, 400, 0.5), "2": coin(2, 400, 0.7)}
    interval = placed(apart, shared=False).interval
    assert interval is not None
    assert interval.high - interval.low > 0.3
    assert interval == placed(dict(reversed(apart.items())), shared=False).interval


def test_without_the_answers_the_seeds_values_are_resampled() -> None:
    apart = {"0": coin(0, 200, 0.9), "1": coin(1, 200, 0.5), "2": coin(2, 200, 0.7)}
    pooled = placed(apart, shared=False, answers=False)
    assert pooled.interval is not None
    assert pooled.interval.low == pytest.approx(min(map(np.mean, apart.values())))
    assert pooled.interval.high == pytest.approx(max(map(np.mean, apart.values())))


def test_one_seed_keeps_the_interval_of_its_cell() -> None:
    alone = placed({"7": coin(0)}, shared=True)
    assert alone.interval == wilson(sum(coin(0)), 200)


@pytest.mark.parametrize("answers", [True, False])
def test_the_same_answers_thrice_say_no_more_than_once(answers: bool) -> None:
    once = placed({"0": coin(0)}, shared=True)
    thrice = placed({str(i): coin(0) for i in range(3)}, shared=True, answers=answers)
    assert (thrice.n, thrice.prompts) == (600, 200)
    assert thrice.stderr == pytest.approx(once.stderr)
    assert thrice.interval is not None
    assert once.interval is not None
    assert thrice.interval.low == pytest.approx(once.interval.low, abs=0.015)
    assert thrice.interval.high == pytest.approx(once.interval.high, abs=0.015)


def test_shared_prompts_lie_between_those_two_and_without_answers_the_worst_is_taken() -> None:
    # Half of the luck is the prompt's, half the seed's.
    prompt = np.random.default_rng(9).normal(size=200)
    seeds: Values = {
        str(i): ((prompt + np.random.default_rng(i).normal(size=200)) > -0.7).astype(float).tolist()
        for i in range(3)
    }
    own = placed(seeds, shared=False).stderr
    shared = placed(seeds, shared=True).stderr
    unknown = placed(seeds, shared=True, answers=False).stderr
    assert own is not None
    assert shared is not None
    assert unknown is not None
    assert own < shared < unknown


def test_all_right_on_shared_prompts_is_an_interval_over_prompts() -> None:
    interval = placed({str(i): [1.0] * 50 for i in range(3)}, shared=True).interval
    assert interval is not None
    assert (interval.low, interval.high) == (wilson(50, 50).low, 1.0)


def test_the_pooled_interval_covers_at_least_as_often_as_it_says() -> None:
    random, hits, runs = np.random.default_rng(0), 0, 100
    for _ in range(runs):
        # Each prompt has a chance of its own, 0.7 on the average, in all three seeds.
        chances = random.beta(1.4, 0.6, size=120)
        seeds = {str(i): (random.random(120) < chances).astype(float).tolist() for i in range(3)}
        interval = placed(seeds, shared=True).interval
        assert interval is not None
        hits += interval.low <= 0.7 <= interval.high
    assert hits / runs >= 0.92


def test_a_problem_with_several_answers_is_pooled_by_its_mean() -> None:
    random = np.random.default_rng(3)
    seeds = {str(i): (random.integers(0, 5, 40) / 4).tolist() for i in range(3)}
    pooled = placed(seeds, shared=True, repeats=4)
    assert pooled.interval is not None
    assert pooled.interval.method == BOOTSTRAP_METHOD
    totals = np.mean([seeds[str(i)] for i in range(3)], axis=0)
    assert pooled.stderr == pytest.approx(totals.std(ddof=1) / np.sqrt(40))


def test_a_paired_test_flips_the_prompts_of_one_seed_and_the_seeds_of_several() -> None:
    first, second = coin(1, 40, 0.8), coin(2, 40, 0.5)
    alone = paired_test(placed({"0": first}, shared=True), placed({"0": second}, shared=True))
    thrice = paired_test(
        placed({str(i): first for i in range(3)}, shared=True),
        placed({str(i): second for i in range(3)}, shared=True),
    )
    six = paired_test(
        placed({str(i): coin(i, 40, 0.8) for i in range(6)}, shared=False),
        placed({str(i): coin(10 + i, 40, 0.4) for i in range(6)}, shared=False),
    )
    assert alone is not None
    assert thrice is not None
    assert six is not None
    assert alone.p_value < 0.05
    # However many prompts three seeds have, no sign-flip test of three differences is significant.
    assert thrice.p_value == 0.25
    assert six.p_value == 2 / 2**6
    assert (thrice.n, thrice.prompts, thrice.seeds) == (120, 40, 3)
    assert (six.n, six.prompts, six.seeds, alone.seeds) == (240, 240, 6, 1)
    assert thrice.difference == pytest.approx(alone.difference)


def test_only_seeds_and_prompts_of_both_rows_are_compared() -> None:
    first = placed({"0": coin(0), "1": coin(1)}, shared=True)
    second = placed({"1": coin(2), "2": coin(3)}, shared=True)
    assert {seed for seed, _, _ in common_answers((first, second))} == {"1"}
    assert paired_test(first, placed({"7": coin(2)}, shared=True)) is None


def test_a_row_without_seeds_stands_beside_every_seed() -> None:
    before = placed({None: coin(0)}, shared=True)
    after = placed({"0": coin(1), "1": coin(2)}, shared=True)
    found = paired_test(before, after)
    assert found is not None
    assert (found.n, found.prompts) == (400, 200)
