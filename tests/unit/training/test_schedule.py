"""The learning rate of the paper's stages at the steps that matter."""

import itertools
import math

import pytest

from amnesia_bench.training.schedule import learning_rate
from tests.support.training_runs import training_run


def stage(peak: float, floor: float, warmup: int, steps: int):
    return training_run(
        {
            "steps": steps,
            "optimizer": {
                "learning_rate": peak,
                "min_learning_rate": floor,
                "warmup_steps": warmup,
            },
        }
    ).train


@pytest.mark.parametrize(
    ("peak", "floor", "steps"),
    [(1e-3, 1e-5, 20_000), (1e-4, 1e-5, 20_000), (3e-5, 1e-5, 20_000), (1e-5, 1e-5, 500)],
)
def test_warm_up_from_zero_then_a_cosine_to_the_floor(peak, floor, steps):
    train = stage(peak, floor, 50, steps)

    def rate(step):
        return learning_rate(step, steps, train.optimizer)

    assert rate(1) == 0
    assert rate(50) == pytest.approx(peak * 49 / 50, rel=1e-15)
    assert rate(51) == pytest.approx(peak, rel=1e-15)
    middle = 51 + (steps - 50) // 2
    assert rate(middle) == pytest.approx((peak + floor) / 2, rel=1e-12)
    left = 1 / (steps - 50)
    last = floor + (peak - floor) * (1 - math.cos(math.pi * left)) / 2
    assert rate(steps) == pytest.approx(last, rel=1e-9)
    assert rate(steps) == pytest.approx(floor, rel=2e-4)
    rates = [rate(step) for step in range(1, steps + 1)]
    assert all(a >= b for a, b in itertools.pairwise(rates[50:]))


def test_a_floor_at_the_peak_is_a_constant_rate_and_no_warm_up_begins_at_once():
    train = stage(1e-5, 1e-5, 0, 100)
    assert {learning_rate(s, 100, train.optimizer) for s in range(1, 101)} == {1e-5}
