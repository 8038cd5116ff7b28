"""Rows, steps and time of decoding, by hand and against a simulation of refilled batches."""

from __future__ import annotations

import random
from dataclasses import replace
from heapq import heapify, heapreplace

import pytest

from amnesia_bench.costs.decoding import (
    BANDWIDTH_UTILISATION,
    DECODE_UTILISATION,
    DECODING,
    Answers,
    Bound,
    decoding_of,
)
from amnesia_bench.costs.gpus import GPUS
from amnesia_bench.costs.model_shape import named_shape
from amnesia_bench.inference.batch_rows import MAX_ROWS, row_bytes, rows_that_fit

H100 = GPUS["h100"]
EAGER, VLLM = DECODING["transformers"], DECODING["vllm"]
MISTRAL = named_shape("mistral_7b")
# Mistral: 2 x 8 x 128 values per token and layer in 16 bits.
TOKEN_BYTES = 32 * 2 * 8 * 128 * 2


def test_the_rows_are_those_that_the_engine_chooses() -> None:
    answers = Answers(count=10_000, prompt_tokens=1000, limit=1000, mean=1000)
    free = 80e9 - 2 * 7_248_023_552
    per_row = row_bytes(2000 * TOKEN_BYTES, 32_768)
    expected = rows_that_fit(free, per_row, MAX_ROWS["cuda"])
    assert 1 < decoding_of(MISTRAL, answers, EAGER, H100).rows == expected < MAX_ROWS["cuda"]
    # Pages hold 1,000 prompt tokens and half of the answer on average.
    paged = int((0.9 * 80e9 - 2 * 7_248_023_552 - 4e9) // (1500 * TOKEN_BYTES))
    assert decoding_of(MISTRAL, answers, replace(VLLM, max_rows=10**6), H100).rows == paged
    assert decoding_of(MISTRAL, replace(answers, count=3), EAGER, H100).rows == 3


def test_answers_of_equal_length_take_full_batches() -> None:
    answers = Answers(count=1025, prompt_tokens=10, limit=100, mean=100)
    shape = named_shape("jet_nemotron_2b")
    assert decoding_of(shape, answers, EAGER, H100).steps == 3 * 100
    assert decoding_of(shape, answers, VLLM, H100).steps == 5 * 100


def test_unequal_answers_take_about_the_steps_of_a_simulation() -> None:
    generator = random.Random(0)
    limit, count = 2000, 4000
    lengths = [min(limit, 1 + int(generator.expovariate(1 / 600))) for _ in range(count)]
    mean = round(sum(lengths) / count)
    answers = Answers(count=count, prompt_tokens=10, limit=limit, mean=mean)
    decoding = decoding_of(
        named_shape("jet_nemotron_2b"), answers, replace(VLLM, window=None), H100
    )
    ends = [0] * decoding.rows
    heapify(ends)
    for length in lengths:  # each answer takes the row that becomes free first
        heapreplace(ends, ends[0] + length)
    assert max(ends) <= decoding.steps <= 1.15 * max(ends)
    # An engine that waits before it refills takes longer, but by less than a fifth.
    waiting = decoding_of(
        named_shape("jet_nemotron_2b"), answers, replace(EAGER, max_rows=decoding.rows), H100
    )
    assert decoding.steps < waiting.steps < 1.2 * decoding.steps


def test_a_step_takes_the_longest_of_three_times() -> None:
    few = Answers(count=1, prompt_tokens=10, limit=10, mean=10)
    step = decoding_of(MISTRAL, few, EAGER, H100)
    assert (step.bound, step.step_seconds) == (Bound.LAUNCH, 32 * EAGER.layer_seconds)
    weights = MISTRAL.body + MISTRAL.embedding
    long = Answers(count=8, prompt_tokens=31_900, limit=200, mean=200)
    step = decoding_of(MISTRAL, long, VLLM, H100)
    moved = 2 * weights + 8 * (32_000 * TOKEN_BYTES + 32 * MISTRAL.vocab)
    assert step.bound is Bound.MEMORY
    assert step.step_seconds == pytest.approx(moved / 3.35e12 / BANDWIDTH_UTILISATION)
    fast = replace(H100, bytes_per_second=1e18)
    many = Answers(count=256, prompt_tokens=10, limit=10, mean=10)
    step = decoding_of(MISTRAL, many, replace(VLLM, step_seconds=0.0), fast)
    flops = 256 * (2 * weights + 32 * 4 * 4096 * 16)
    assert step.bound is Bound.COMPUTE
    assert step.step_seconds == pytest.approx(flops / 989e12 / DECODE_UTILISATION)
