"""How many rows fit into memory, and when finished rows are replaced."""

from __future__ import annotations

import pytest
from scripts.bench_decoding import Steps, answer_lengths, refilled, static

from amnesia_bench.inference.batch_rows import (
    MAX_ROWS,
    REFILL_STEPS,
    RefillRule,
    max_rows,
    row_bytes,
    rows_per_call,
    rows_per_refill,
    rows_that_fit,
)


def test_rows_are_limited_by_memory_and_by_the_device():
    size = row_bytes(1000.0, 10)
    assert rows_that_fit(100 * size, size, 512) == 84  # 85 %, and one row for the prefill
    assert rows_that_fit(100 * size, size, 20) == 20
    assert rows_that_fit(0.0, size, 512) == 1
    assert rows_that_fit(-5.0, size, 512) == 1
    assert (max_rows("cpu"), max_rows("cuda")) == (MAX_ROWS["cpu"], MAX_ROWS["cuda"])


def test_longer_rows_and_larger_vocabularies_need_more_memory():
    assert row_bytes(2000.0, 10) > row_bytes(1000.0, 10) > 1000
    assert row_bytes(1000.0, 20) > row_bytes(1000.0, 10)


def test_a_prefill_call_has_a_limited_number_of_tokens():
    assert rows_per_call(100, 2048) == 2**16 // 100
    assert rows_per_call(10_000, 2048) == 32
    assert rows_per_call(10_000, None) == 6
    assert rows_per_call(10**6, None) == 1


def test_prompts_that_wait_to_join_a_batch_take_little_memory_besides_it():
    """Prompts of one depth differ in few tokens, so a call might have 64 of them, each of 256K."""
    assert rows_per_refill(2**18, 2**18 - 1024, 2048) == 1
    assert rows_per_refill(2**15, 2**15 - 1024, 2048) == 4
    assert rows_per_refill(2048, 1024, 2048) == 64
    assert rows_per_refill(100, 0, 2048) == rows_per_call(100, 2048)


def test_finished_rows_are_replaced_when_they_have_cost_as_much_as_a_refill():
    rule = RefillRule()
    assert rule.due(0)
    assert not rule.due(8)
    steps = 0
    while not rule.due(6):
        rule.after_step(running=6, rows=8)
        steps += 1
    assert steps == REFILL_STEPS * 4
    rule.refilled()
    assert not rule.due(6)


@pytest.mark.parametrize("rows", [8, 64])
def test_refills_save_a_third_of_the_steps_of_long_tailed_answers(rows):
    lengths = answer_lengths(2000, median=180, limit=800, seed=0)
    batches, batch = static(lengths, rows), refilled(lengths, rows)
    assert batches.tokens == batch.tokens == sum(lengths)
    assert batch.steps < 0.67 * batches.steps
    # Few steps are lost: to free rows, and to the end, when no prompt is waiting.
    assert batch.steps < sum(lengths) / rows * 1.12 + max(lengths)
    # Each refill comes after free rows have cost as much as it does.
    assert batch.refills * REFILL_STEPS < 0.1 * batch.steps


def test_without_waiting_prompts_there_is_nothing_to_refill():
    lengths = answer_lengths(16, median=50, limit=200, seed=1)
    assert static(lengths, 16).steps == refilled(lengths, 16).steps == max(lengths) - 1
    assert refilled([1, 1, 1], 1) == Steps(steps=0, row_steps=0, refills=3, tokens=3)
