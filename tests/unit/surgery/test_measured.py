"""How far measured rules move towards pre, against formulas written here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from amnesia_bench.config.schema import StepBack
from amnesia_bench.surgery.measured import lm_cocktail_alpha, step_back_alpha, steps_back


@pytest.mark.parametrize("losses", [(2.0, 3.0), (3.0, 2.0), (0.1, 0.1), (5.0, 900.0)])
@pytest.mark.parametrize("temperature", [0.01, 1.0, 5.0])
def test_lm_cocktail_weighs_by_the_softmax_of_negative_losses(
    losses: tuple[float, float], temperature: float
) -> None:
    weights = torch.softmax(-torch.tensor(losses, dtype=torch.float64) / temperature, 0)
    assert lm_cocktail_alpha(losses, temperature) == pytest.approx(float(weights[0]), rel=1e-12)


@pytest.mark.parametrize("steps", [0, 1, 2, 10])
def test_steps_back_are_one_blend(steps: int) -> None:
    rule = StepBack(step=0.1, max_steps=10, max_perplexity_ratio=1.15)
    pre, post = np.random.default_rng(0).standard_normal((2, 100))
    weights = post
    for _ in range(steps):
        weights = (1 - 0.1) * weights + 0.1 * pre
    alpha = step_back_alpha(rule, steps)
    np.testing.assert_allclose((1 - alpha) * post + alpha * pre, weights, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("perplexities", "expected"),
    [
        ([11.4], 0),
        ([12.0, 11.6, 11.49], 2),
        ([12.0, 11.6], None),
        ([9.0], 0),  # better than pre
    ],
)
def test_steps_end_when_the_perplexity_is_low_enough(
    perplexities: list[float], expected: int | None
) -> None:
    rule = StepBack(step=0.1, max_steps=10, max_perplexity_ratio=1.15)
    losses = [math.log(perplexity) for perplexity in perplexities]
    assert steps_back(rule, math.log(10.0), losses) == expected
