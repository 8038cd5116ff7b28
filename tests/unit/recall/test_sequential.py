"""The sequential rule: its error rate by enumeration and simulation, its power, its savings."""

import itertools
import math

import numpy as np
import pytest

from amnesia_bench.recall.sequential import judge, looks
from amnesia_bench.records.recall import CheckVerdict, Rule
from amnesia_bench.statistics.intervals import PairedCounts

RULE = Rule(samples=500, margin=0.0, error_rate=0.025)  # as `amnesia check` has it
Chances = tuple[float, float, float, float]


def simulate(
    chances: Chances, rng: np.random.Generator, rule: Rule = RULE, num_prompt_sets: int = 1
) -> tuple[CheckVerdict, int]:
    """Return the verdict on one simulated prompt set, and how many prompts it took.

    `chances` are those of: both right, only pre, only post, none.
    """
    total = np.zeros(4, int)
    history: list[PairedCounts] = []
    verdict = CheckVerdict.UNDECIDED
    for before, look in itertools.pairwise((0, *looks(rule.samples))):
        total = total + rng.multinomial(look - before, chances)
        both, pre, post, neither = map(int, total)
        history.append(PairedCounts(both=both, only_first=pre, only_second=post, neither=neither))
        verdict = judge(history, rule, num_prompt_sets)
        if verdict is not CheckVerdict.UNDECIDED:
            break
    return verdict, history[-1].n


def rate(
    wanted: CheckVerdict, chances: Chances, trials: int, rule: Rule = RULE, num_prompt_sets: int = 1
) -> float:
    rng = np.random.default_rng(1)
    found = [simulate(chances, rng, rule, num_prompt_sets)[0] for _ in range(trials)]
    return found.count(wanted) / trials


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (1, (1,)),
        (49, (49,)),
        (50, (25, 50)),
        (100, (25, 50, 100)),
        (500, (25, 50, 100, 200, 500)),
    ],
)
def test_the_looks_double_up_to_half_of_all_prompts(
    samples: int, expected: tuple[int, ...]
) -> None:
    assert looks(samples) == expected


@pytest.mark.parametrize(
    "chances",
    [
        (0.9, 0.0, 0.0, 0.1),
        (0.94, 0.01, 0.01, 0.04),
        (0.8, 0.05, 0.05, 0.1),
        (0.4, 0.15, 0.15, 0.3),
        (0.0, 0.5, 0.5, 0.0),
        (0.7, 0.05, 0.15, 0.1),
    ],
)
def test_false_alarms_stay_below_5_percent_whatever_the_churn(chances: Chances) -> None:
    assert rate(CheckVerdict.REGRESSION, chances, 300) <= 0.05


def test_the_error_rate_is_exact_over_every_sequence_of_coins() -> None:
    # Every prompt is discordant: 2^n equally likely sequences; here all of 2 looks of 25.
    rule = Rule(samples=50, margin=0.0, error_rate=0.025)
    alarms = 0.0
    for first, second in itertools.product(range(26), repeat=2):
        chance = math.comb(25, first) * math.comb(25, second) / 2**50
        history = [
            PairedCounts(both=0, only_first=lost, only_second=n - lost, neither=0)
            for lost, n in ((first, 25), (first + second, 50))
        ]
        verdicts = [judge(history[: k + 1], rule, 1) for k in range(2)]
        alarms += chance * (CheckVerdict.REGRESSION in verdicts)
    assert 0.015 < alarms <= 0.025


def test_false_alarms_of_a_check_of_six_cells_stay_below_it_too() -> None:
    rng = np.random.default_rng(2)
    alarms = sum(
        any(
            simulate((0.6, 0.15, 0.15, 0.1), rng, num_prompt_sets=6)[0] is CheckVerdict.REGRESSION
            for _ in range(6)
        )
        for _ in range(200)
    )
    assert alarms / 200 <= 0.05


def test_large_drops_are_found_and_cost_less_than_half_of_the_prompts() -> None:
    rng = np.random.default_rng(3)
    found = [simulate((0.65, 0.25, 0.05, 0.05), rng) for _ in range(200)]
    assert all(verdict is CheckVerdict.REGRESSION for verdict, _ in found)
    assert np.mean([n for _, n in found]) <= 125


def test_equal_models_are_cleared_with_less_than_half_of_the_prompts() -> None:
    rng = np.random.default_rng(4)
    found = [simulate((0.9, 0.0, 0.0, 0.1), rng) for _ in range(10)]
    assert set(found) == {(CheckVerdict.NO_REGRESSION, 200)}


def test_a_drop_that_should_be_excluded_is_rarely_cleared() -> None:
    for churn in (0.0, 0.03, 0.1):
        chances = (0.7, 0.05 + churn, churn, 0.25 - 2 * churn)
        cleared = rate(CheckVerdict.NO_REGRESSION, chances, 400)
        assert cleared <= 0.05, churn


def test_a_drop_within_the_margin_is_no_regression() -> None:
    rule = Rule(samples=500, margin=0.1, error_rate=0.05)
    inside, outside = (0.84, 0.08, 0.02, 0.06), (0.6, 0.3, 0.02, 0.08)
    assert rate(CheckVerdict.REGRESSION, inside, 200, rule) <= 0.02
    assert rate(CheckVerdict.NO_REGRESSION, inside, 200, rule) >= 0.85
    assert rate(CheckVerdict.REGRESSION, outside, 200, rule) >= 0.95


def test_an_improvement_is_no_regression() -> None:
    assert rate(CheckVerdict.NO_REGRESSION, (0.5, 0.02, 0.3, 0.18), 100) == 1


@pytest.mark.parametrize("sizes", [(), (24,), (25, 100), (25, 50, 100, 200, 500, 500)])
def test_counts_of_other_looks_are_refused(sizes: tuple[int, ...]) -> None:
    history = [PairedCounts(both=n, only_first=0, only_second=0, neither=0) for n in sizes]
    with pytest.raises(ValueError, match="looks at"):
        judge(history, RULE, 1)


@pytest.mark.parametrize(
    "wrong", [{"samples": 0}, {"margin": -0.1}, {"margin": 0.95}, {"error_rate": 0.0}]
)
def test_a_rule_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Rule(**{"samples": 500, "margin": 0.0, "error_rate": 0.05, **wrong})  # type: ignore[arg-type]
