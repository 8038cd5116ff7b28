"""Autocorrelation against Markov chains whose decay is known, and against chance."""

import math

import numpy as np
import pytest

from amnesia_bench.analysis.autocorrelation import MEAN, RATIO, autocorrelations
from amnesia_bench.analysis.texts import Text, Texts
from amnesia_bench.errors import UserError
from amnesia_bench.records.artifacts import Parent

DATA = Parent(role="data", location="here", identity="sha256:0")
PI = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


def _texts(rows):
    taken = tuple(Text(np.array(row, np.int32), np.ones(len(row), bool)) for row in rows)
    return Texts("chain", None, taken, 0, 0, "chain")


def _chains(gap, count, tokens, rng):
    """With probability 1 - gap the same token again, else one drawn from PI: P^d - 1 pi^T decays
    as (1 - gap)^d for every token, so that both readings are (1 - gap)^d.
    """
    rows = []
    for _ in range(count):
        fresh = rng.random(tokens) < gap
        fresh[0] = True
        draws = rng.choice(len(PI), size=tokens, p=PI)
        rows.append(draws[np.maximum.accumulate(np.where(fresh, np.arange(tokens), 0))])
    return _texts(rows)


@pytest.mark.parametrize("gap", [0.02, 0.1, 0.3])
def test_the_rate_of_a_markov_chain_is_in_its_interval(gap):
    rng = np.random.default_rng(7)
    records = autocorrelations(_chains(gap, 60, 1500, rng), 100, DATA, rng)
    assert [each.reading for each in records] == [RATIO, MEAN]
    for each in records:
        rate = each.fit.rate
        assert rate.interval.low < -math.log(1 - gap) < rate.interval.high
        assert rate.interval.high - rate.interval.low < 0.5 * rate.value
        assert each.fit.amplitude == pytest.approx(1, abs=0.15)
        for d in (1, 2, 3):
            assert each.curve.low[d - 1] < (1 - gap) ** d < each.curve.high[d - 1]
        assert (each.n, each.tokens) == (60, 60 * 1500)


@pytest.mark.parametrize("seed", range(5))
def test_independent_tokens_have_no_decay_to_fit(seed):
    rng = np.random.default_rng(seed)
    rows = [rng.choice(len(PI), size=800, p=PI) for _ in range(40)]
    for each in autocorrelations(_texts(rows), 50, DATA, rng):
        assert each.fit is None
        assert each.tail is None
        assert max(map(abs, each.curve.mean)) < 0.03
        assert each.chance == pytest.approx(PI @ PI, abs=0.01)


def test_what_comes_before_the_peak_is_not_fitted():
    """Three spellings of each token, none twice in a row: as in prose, none follows itself."""
    rng = np.random.default_rng(3)
    gap = 0.05
    rows = [
        3 * text.tokens + np.cumsum(1 + rng.integers(0, 2, len(text.tokens))) % 3
        for text in _chains(gap, 60, 1000, rng).taken
    ]
    found = autocorrelations(_texts(rows), 40, DATA, rng)[0]
    assert found.curve.high[0] < 0
    assert (found.fit.first, found.fit.last) == (2, 40)


def test_both_readings_are_their_formulas():
    rows = [[0, 1, 0, 0, 2, 1, 0, 1], [2, 2, 1, 0, 1, 2, 0, 0, 1]]
    rng = np.random.default_rng(0)
    ratio, mean = autocorrelations(_texts(rows), 3, DATA, rng)
    every = np.concatenate(rows)
    pi = np.bincount(every) / len(every)
    for d in (1, 2, 3):
        pairs = [(a, b) for row in rows for a, b in zip(row, row[d:], strict=False)]
        both = np.array([sum(a == b == v for a, b in pairs) / len(pairs) for v in range(3)])
        expected = (both.sum() - pi @ pi) / (1 - pi @ pi)
        assert ratio.curve.mean[d - 1] == pytest.approx(expected, rel=1e-12)
        correlations = (both - pi**2) / (pi - pi**2)
        assert mean.curve.mean[d - 1] == pytest.approx(pi @ correlations, rel=1e-12)


def test_texts_that_cannot_be_measured_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="a text of 5 tokens is too short for the largest distance"):
        autocorrelations(_texts([[0, 1, 2, 3, 4], list(range(9))]), 5, DATA, rng)
    with pytest.raises(UserError, match="1 texts; an interval needs at least two"):
        autocorrelations(_texts([[0, 1, 2, 3]]), 2, DATA, rng)
    with pytest.raises(UserError, match="all tokens are equal"):
        autocorrelations(_texts([[3] * 9, [3] * 9]), 2, DATA, rng)
