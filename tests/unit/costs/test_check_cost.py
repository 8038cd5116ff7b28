"""What `amnesia check` says that it costs, before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest

import amnesia_bench as ab
from amnesia_bench.costs.prefill import shared_cost
from amnesia_bench.errors import UserError
from tests.support.byte_checkpoints import save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "model")


@pytest.mark.parametrize(
    ("suite", "answers", "prompt_tokens"),
    [
        (None, 2 * 6 * 500, 2 * 3 * 500 * (32768 + 262144)),
        ("niah", 2 * 6 * 500, 2 * 3 * 500 * (32768 + 262144)),
        ("quick", 2 * 2 * 200, 2 * 2 * 200 * 32768),
        ("ruler", 2 * 11 * 500, 2 * 11 * 500 * 32768),
    ],
)
def test_prompts_and_tokens_of_a_suite(
    checkpoint: Path, suite: str | None, answers: int, prompt_tokens: int
) -> None:
    request = ab.CheckRequest(pre=checkpoint, post=checkpoint, suite=suite)
    cost = ab.estimate_check(request)
    assert (cost.answers, cost.prompt_tokens) == (answers, prompt_tokens)
    assert cost.gpu_hours is not None
    assert cost.gpu_hours > 0
    if suite == "ruler":
        assert cost.new_tokens == 2 * 500 * (8 * 128 + 30 + 120 + 50)


def test_choices_override_a_suite_and_a_third_checkpoint_costs_as_much(checkpoint: Path) -> None:
    request = ab.CheckRequest(
        pre=checkpoint,
        post=checkpoint,
        restored=checkpoint,
        suite="ruler",
        tasks=("ruler_vt",),
        lengths=(4096, 8192),
        samples=10,
    )
    cost = ab.estimate_check(request)
    assert (cost.prompt_sets, cost.answers) == (2, 60)
    assert cost.prompt_tokens == 30 * (4096 + 8192)


def test_an_unknown_suite_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean quick"):
        ab.CheckRequest(pre=checkpoint, post=checkpoint, suite="quik")


def test_missing_prompts_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    request = ab.CheckRequest(pre=checkpoint, post=checkpoint, prompts=tmp_path / "none")
    with pytest.raises(UserError, match="none"):
        ab.estimate_check(request)


def test_four_needles_share_less_than_one_and_as_much_as_drawn() -> None:
    """The first of four needles is at the mean of the minimum of four of 40 places."""
    tokens, prompts = 40_000, 500
    one, four = (shared_cost(float, tokens, prompts, 1, needles) for needles in (1, 4))
    assert one < four < prompts * tokens
    mean_first = (40 + 1) / (4 + 1) - 1  # of 4 of 40 places, counted from 0
    expected = prompts * tokens * (1 - mean_first / 39)
    assert four == pytest.approx(expected, rel=0.005)
