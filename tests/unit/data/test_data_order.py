"""The order of samples: permutations, mixtures, and nothing that depends on who asks."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amnesia_bench.data.order import SampleOrder, interleave, permuted
from amnesia_bench.errors import UserError


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_a_permutation_is_a_bijection_for_any_size(size: int, key: int) -> None:
    assert sorted(permuted(i, size, key) for i in range(size)) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 65535, 65536, 65537])
def test_a_permutation_is_a_bijection_around_powers_of_two(size: int) -> None:
    assert len({permuted(i, size, 7) for i in range(size)}) == size


@given(
    weights=st.lists(st.integers(1, 10_000), min_size=1, max_size=8).filter(
        lambda w: all(x * 10_000 >= 2 * sum(w) for x in w)
    ),
    seed=st.integers(0, 2**63),
)
@settings(max_examples=25, deadline=None)
def test_a_mixture_is_within_one_sample_of_its_weights_everywhere(
    weights: list[int], seed: int
) -> None:
    order = SampleOrder([50] * len(weights), weights, seed)
    shares = [Fraction(share).limit_denominator(10_000) for share in order.shares]
    assert sum(shares) == 1
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - Fraction(weight, sum(weights))) < Fraction(1, 10_000)
    taken = [0] * len(weights)
    for n in range(1, 3000):
        taken[order.sample(n - 1)[0]] += 1
        assert all(abs(t - n * s) < 1 for t, s in zip(taken, shares, strict=True))


@given(parts=st.lists(st.integers(1, 60), min_size=2, max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_whole_pattern_holds_each_source_exactly_as_often_as_its_part(parts: list[int]) -> None:
    pattern = interleave(parts)
    assert [pattern.count(source) for source in range(len(parts))] == parts


def test_decimal_weights_are_kept_exactly() -> None:
    assert SampleOrder([1, 1], [0.8, 0.2], 0).shares == (0.8, 0.2)
    assert SampleOrder([1, 1, 1], [0.7, 0.1, 0.2], 0).shares == (0.7, 0.1, 0.2)
    assert SampleOrder([1, 1, 1], [1, 1, 1], 0).shares[0] == pytest.approx(1 / 3, abs=1e-4)


def test_every_epoch_of_a_source_holds_each_sequence_once_in_an_order_of_its_own() -> None:
    order = SampleOrder([30, 10], [0.75, 0.25], 3)
    drawn: list[list[int]] = [[], []]
    for index in range(400):
        source, sequence = order.sample(index)
        drawn[source].append(sequence)
    for size, sequences in zip((30, 10), drawn, strict=True):
        epochs = [sequences[i : i + size] for i in range(0, len(sequences) - size + 1, size)]
        assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len(set(map(tuple, epochs))) == len(epochs) >= 10


@given(
    world=st.integers(1, 16), batch=st.integers(1, 4), steps=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_the_samples_of_a_step_do_not_depend_on_the_world_size(
    world: int, batch: int, steps: int, seed: int
) -> None:
    sizes, weights, rows = (40, 11), (0.8, 0.2), world * batch
    alone = [SampleOrder(sizes, weights, seed).sample(i) for i in range(steps * rows)]
    # A fresh object per rank: nothing but the arguments may matter, nor the order of asking.
    ranks = [SampleOrder(sizes, weights, seed) for _ in range(world)]
    shared: dict[int, tuple[int, int]] = {}
    for rank in reversed(range(world)):
        for index in reversed(range(rank, steps * rows, world)):
            shared[index] = ranks[rank].sample(index)
    assert [shared[i] for i in range(steps * rows)] == alone


def test_another_seed_is_another_order() -> None:
    orders = [[SampleOrder([100], [1], seed).sample(i) for i in range(100)] for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_an_order_never_changes_between_versions() -> None:
    order = SampleOrder((1000, 77), (0.8, 0.2), 5)
    assert [order.sample(i) for i in (0, 1, 2, 3, 4, 5000, 10**9)] == [
        (0, 961), (0, 104), (1, 36), (0, 917), (0, 94), (0, 806), (0, 875),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "weights", "said"),
    [
        ([], [], "0 sources and 0 weights"),
        ([3], [1, 1], "1 sources and 2 weights"),
        ([3, 0], [1, 1], "none may be empty"),
        ([3, 3], [1, 0], "each must be above 0"),
        ([3, 3], [1, float("nan")], "each must be above 0"),
        ([3, 3], [1, float("inf")], "each must be above 0"),
        ([3, 3], [1, 1e-9], "one is below 1/10,000"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(
    sizes: list[int], weights: list[float], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        SampleOrder(sizes, weights, 0)
