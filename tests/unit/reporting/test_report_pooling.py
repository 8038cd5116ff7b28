"""Several seeds in one place: prompts that they share are one draw, others are many."""

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
from amnesia_bench.statistics import wilson

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
    assert pooled.interval == wilson(right, 600)


@pytest.mark.parametrize("answers", [True, False])
def test_the_same_answers_thrice_say_no_more_than_once(answers: bool) -> None:
    once = placed({"0": coin(0)}, shared=True)
    thrice = placed({str(i): coin(0) for i in range(3)}, shared=True, answers=answers)
    assert (thrice.n, thrice.prompts) == (600, 200)
    assert thrice.stderr == pytest.approx(once.stderr)
    assert thrice.interval is not None
    assert once.interval is not None
    assert thrice.interval.low == pytest.approx(once.interval.low, abs=0.002)
    assert thrice.interval.high == pytest.approx(once.interval.high, abs=0.002)


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
    pooled = placed({str(i): [1.0] * 50 for i in range(3)}, shared=True)
    assert pooled.interval == wilson(50, 50)


def test_the_pooled_interval_covers_as_often_as_it_says() -> None:
    random, hits, runs = np.random.default_rng(0), 0, 600
    for _ in range(runs):
        # Each prompt has a chance of its own, 0.7 on the average, in all three seeds.
        chances = random.beta(1.4, 0.6, size=120)
        seeds = {str(i): (random.random(120) < chances).astype(float).tolist() for i in range(3)}
        interval = placed(seeds, shared=True).interval
        assert interval is not None
        hits += interval.low <= 0.7 <= interval.high
    assert 0.925 <= hits / runs <= 0.985


def test_a_problem_with_several_answers_is_pooled_by_its_mean() -> None:
    random = np.random.default_rng(3)
    seeds = {str(i): (random.integers(0, 5, 40) / 4).tolist() for i in range(3)}
    pooled = placed(seeds, shared=True, repeats=4)
    assert pooled.interval is not None
    assert pooled.interval.method == "normal"
    totals = np.mean([seeds[str(i)] for i in range(3)], axis=0)
    assert pooled.stderr == pytest.approx(totals.std(ddof=1) / np.sqrt(40))


def test_a_paired_test_flips_a_prompt_with_all_its_answers() -> None:
    first, second = coin(1, 40, 0.8), coin(2, 40, 0.5)
    alone = paired_test(placed({"0": first}, shared=True), placed({"0": second}, shared=True))
    thrice = paired_test(
        placed({str(i): first for i in range(3)}, shared=True),
        placed({str(i): second for i in range(3)}, shared=True),
    )
    own = paired_test(
        placed({str(i): first for i in range(3)}, shared=False),
        placed({str(i): second for i in range(3)}, shared=False),
    )
    assert alone is not None
    assert thrice is not None
    assert own is not None
    assert thrice.p_value == pytest.approx(alone.p_value)
    assert own.p_value < thrice.p_value
    assert (thrice.n, thrice.prompts, own.prompts) == (120, 40, 120)
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
