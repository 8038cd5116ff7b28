"""Sampling: which tokens may be drawn, how often, and with whose random numbers."""

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from amnesia_bench.inference.sampling import choose, generator_of
from amnesia_bench.records.evaluation import Sampling

VOCAB = 30


def sampling(temperature=1.0, top_p=1.0, top_k=None):
    return Sampling(max_new_tokens=1, temperature=temperature, top_p=top_p, top_k=top_k, stop=())


def logits(rows=1, seed=0):
    return 2 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def draws(row, how, count):
    """Draw once with each of `count` seeds."""
    generators = [generator_of(seed) for seed in range(count)]
    return choose(row.expand(count, -1), how, generators)


def test_greedy_takes_the_likeliest_and_needs_no_generator():
    batch = logits(5)
    assert torch.equal(choose(batch, sampling(temperature=0), []), batch.argmax(dim=1))


@pytest.mark.parametrize(
    "how",
    [
        sampling(0.6, 0.95),
        sampling(0.7, 0.8, 20),
        sampling(1.5, 1.0, 5),
        sampling(1.0, 0.3),
        sampling(),
    ],
)
def test_frequencies_are_those_of_transformers_own_warpers(how):
    row = logits()
    warpers = LogitsProcessorList([TemperatureLogitsWarper(how.temperature)])
    if how.top_k is not None:
        warpers.append(TopKLogitsWarper(how.top_k))
    warpers.append(TopPLogitsWarper(how.top_p))
    expected = warpers(torch.zeros(1, 1).long(), row.clone()).softmax(dim=-1)[0]
    count = 4000
    found = torch.bincount(draws(row, how, count), minlength=VOCAB) / count
    assert torch.all(found[expected == 0] == 0)
    # Five standard deviations of a binomial share, for each of the tokens.
    spread = (expected * (1 - expected) / count).sqrt()
    assert torch.all((found - expected).abs() <= 5 * spread + 1e-9)


def test_a_tiny_top_p_or_a_top_k_of_one_is_greedy():
    row = logits()
    for how in (sampling(top_p=1e-9), sampling(top_k=1)):
        assert torch.all(draws(row, how, 50) == row.argmax())


def test_a_draw_at_the_end_of_the_sum_is_a_token_that_may_be_drawn(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(1.0, dtype=torch.float64))
    row = logits()
    [token] = choose(row, sampling(top_k=7), [generator_of(0)])
    assert token in row[0].topk(7).indices


def test_a_row_draws_the_same_alone_and_in_a_batch():
    batch, how = logits(6), sampling(0.8, 0.9)
    together = choose(batch, how, [generator_of(seed) for seed in range(6)])
    alone = [choose(batch[i : i + 1], how, [generator_of(i)])[0] for i in range(6)]
    assert together.tolist() == [int(token) for token in alone]


def test_one_random_number_is_drawn_per_token():
    ours, reference = generator_of(3), generator_of(3)
    choose(logits(), sampling(), [ours])
    torch.rand((), generator=reference, dtype=torch.float64)
    assert torch.equal(ours.get_state(), reference.get_state())
