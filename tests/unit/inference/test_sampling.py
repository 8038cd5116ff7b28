"""Choosing tokens: the distribution, ties, and that the short way equals a complete sort."""

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from amnesia_bench.inference.decoding import DecodingRow
from amnesia_bench.inference.sampling import (
    CANDIDATES,
    choose,
    choose_by_sorting,
    generator_of,
)
from amnesia_bench.records.evaluation import Sampling
from tests.support.tiny_models import requests_of

VOCAB = 30


def sampling(temperature=1.0, top_p=1.0, top_k=None):
    return Sampling(max_new_tokens=1, temperature=temperature, top_p=top_p, top_k=top_k, stop=())


def logits(rows=1, seed=0):
    return 2 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def uniform_of(seeds):
    """Return the first random number of each seed."""
    numbers = [torch.rand((), generator=generator_of(s), dtype=torch.float64) for s in seeds]
    return torch.stack(numbers)


def chosen(logits, how, uniform):
    """Return the tokens as the engine chooses them: uncertain ones by sorting."""
    tokens, uncertain = choose(logits, how, uniform)
    if uncertain.any():
        rows = uncertain.nonzero()[:, 0]
        tokens[rows] = choose_by_sorting(logits[rows], how, uniform[rows])
    return tokens


def draws(row, how, count):
    """Draw once with each of `count` seeds."""
    return chosen(row.expand(count, -1), how, uniform_of(range(count)))


def test_greedy_takes_the_likeliest_whatever_is_drawn():
    batch = logits(5)
    found = chosen(batch, sampling(temperature=0), uniform_of(range(5)))
    assert torch.equal(found, batch.argmax(dim=1))


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


def test_a_draw_at_the_end_of_the_sum_is_a_token_that_may_be_drawn():
    row = logits()
    [token] = chosen(row, sampling(top_k=7), torch.ones(1, dtype=torch.float64))
    assert token in row[0].topk(7).indices


def test_a_row_draws_the_same_alone_and_in_a_batch():
    batch, how = logits(6), sampling(0.8, 0.9)
    together = chosen(batch, how, uniform_of(range(6)))
    alone = [chosen(batch[i : i + 1], how, uniform_of([i]))[0] for i in range(6)]
    assert together.tolist() == [int(token) for token in alone]


def test_a_row_draws_the_numbers_of_its_seed_one_by_one():
    prompt = np.ones(3, np.int32)
    [request] = requests_of([prompt], temperature=1.0)
    row, reference = DecodingRow.of(request), generator_of(request.seed)
    expected = [float(torch.rand((), generator=reference, dtype=torch.float64)) for _ in range(700)]
    assert [row.draw() for _ in range(700)] == expected


def by_complete_sort(logits, how, uniform):
    """The same rule over the whole sorted vocabulary, without candidates."""
    scaled = logits.double() / how.temperature
    ranked, ids = scaled.sort(dim=-1, descending=True, stable=True)
    probabilities = ranked[:, : how.top_k].softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before >= how.top_p, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    rank = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    last = (probabilities > 0).sum(dim=-1, keepdim=True) - 1
    return ids.gather(1, torch.minimum(rank, last))[:, 0]


def large_vocabulary(rows, likely, dtype, seed):
    """Logits of 4,000 tokens, of which `likely` stand out as a trained model's do."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, 4_000, generator=generator)
    places = torch.randint(4_000, (rows, likely), generator=generator)
    logits.scatter_add_(1, places, 12 * torch.rand(rows, likely, generator=generator))
    return logits.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("how", "likely"),
    [
        (sampling(0.6, 0.95), 100),
        (sampling(0.7, 0.8, 20), 100),
        (sampling(1.0, 0.95), 2000),  # candidates do not suffice for any row
        (sampling(1.0, 1.0, CANDIDATES), 100),
        (sampling(1.0, 0.9, CANDIDATES + 1), 100),
    ],
)
def test_candidates_choose_the_token_of_a_complete_sort(dtype, how, likely):
    logits = large_vocabulary(8, likely, dtype, seed=1)
    for first in range(0, 160, 8):
        uniform = uniform_of(range(first, first + 8))
        expected = by_complete_sort(logits, how, uniform[:, None])
        assert torch.equal(chosen(logits, how, uniform), expected)


def test_equal_logits_at_the_edge_of_the_candidates_are_ranked_by_token_id():
    """All candidates are equal: any choice of 512 of them would be wrong."""
    logits = torch.zeros(2, 4 * CANDIDATES)
    logits[1, 7] = 30.0
    how = sampling(1.0, 1.0, CANDIDATES)
    uniform = torch.tensor([0.999, 0.5], dtype=torch.float64)
    expected = by_complete_sort(logits, how, uniform[:, None])
    assert expected.tolist() == [CANDIDATES - 1, 7]
    assert torch.equal(chosen(logits, how, uniform), expected)


def test_only_rows_that_need_it_are_uncertain():
    """In a batch with one flat row and seven peaked ones, the candidates suffice for the latter."""
    logits = large_vocabulary(8, 20, torch.float32, seed=2)
    logits[:, 0] += 40
    logits[3] = 0.0
    tokens, uncertain = choose(logits, sampling(1.0, 0.95), uniform_of(range(8)))
    assert uncertain.nonzero().tolist() == [[3]]
    assert tokens.tolist()[:3] == [0, 0, 0]


@pytest.mark.slow
def test_a_hundred_thousand_draws_equal_those_of_a_complete_sort():
    how = sampling(0.6, 0.95)
    for start in range(0, 100_000, 500):
        logits = large_vocabulary(500, 200, torch.bfloat16, seed=start)
        uniform = uniform_of(range(start, start + 500))
        expected = by_complete_sort(logits, how, uniform[:, None])
        assert torch.equal(chosen(logits, how, uniform), expected)
