"""Batches that are refilled: the answers of static batches in fewer steps, and shared prefills."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from scripts.bench_decoding import answer_lengths, refilled, static

from amnesia_bench.inference import batch_decoder, batch_rows
from amnesia_bench.inference.caches import JoinedRows
from amnesia_bench.inference.language_model import LanguageModel
from amnesia_bench.inference.protocol import EngineOptions
from amnesia_bench.inference.transformers_engine import TransformersEngine
from tests.support.tiny_models import needle_prompts, requests_of, tiny_model, tiny_tokenizer

ROWS = 6


def engine_of(model, **options):
    values = {"prefill_chunk_tokens": 64, "max_rows": ROWS}
    return TransformersEngine(model, tiny_tokenizer(), EngineOptions(**(values | options)))


def answers(engine, requests):
    found = {generation.key: generation for generation in engine.generate(requests)}
    assert found.keys() == {request.key for request in requests}
    return found


class CountedCalls:
    """Counts the decode steps of a model, and the tokens that it prefills."""

    def __init__(self, model):
        self.steps = self.prefilled = self.widest = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        rows, tokens = kwargs["input_ids"].shape
        if tokens == 1:
            self.steps += 1
            cache = kwargs["past_key_values"]
            self.widest = max(self.widest, cache.get_seq_length())
        else:
            self.prefilled += rows * tokens


def long_tailed(count=30, median=16, limit=80, **sampling):
    """Return requests with prompts of 31 to 101 tokens and answers of lognormal lengths."""
    lengths = answer_lengths(count, median=median, limit=limit, seed=0)
    prompts = [needle_prompts(1, 31 + 7 * (i % 11), 1, seed=i)[0] for i in range(count)]
    return [
        dataclasses.replace(
            request, sampling=dataclasses.replace(request.sampling, max_new_tokens=new)
        )
        for request, new in zip(requests_of(prompts, **sampling), lengths, strict=True)
    ]


def without_ends(model, **options):
    """Return an engine whose answers all end at their limits."""
    engine = engine_of(model, **options)
    engine._eos_ids = frozenset()
    return engine


@pytest.mark.parametrize(
    ("name", "temperature"),
    [("hypenet", 0.0), ("hypenet", 0.8), ("jet_nemotron", 0.8), ("qwen2", 0.0)],
)
def test_refilled_batches_give_the_answers_of_static_ones_in_fewer_steps(name, temperature):
    requests = sorted(
        long_tailed(temperature=temperature, top_p=0.9), key=lambda request: len(request.tokens)
    )
    model = tiny_model(name)
    engine = without_ends(model)  # before its calls are counted: it tests the cache
    counted = CountedCalls(model)
    expected = {}
    for start in range(0, len(requests), ROWS):
        expected |= answers(engine, requests[start : start + ROWS])
    in_batches, counted.steps = counted.steps, 0
    assert answers(engine, requests) == expected
    # The benchmark counts the same steps.
    lengths = [request.sampling.max_new_tokens for request in requests]
    assert in_batches == static(lengths, ROWS).steps
    assert counted.steps == refilled(lengths, ROWS).steps < 0.9 * in_batches


def test_the_cache_becomes_shorter_when_the_longest_rows_have_ended(monkeypatch):
    """Otherwise a batch with refills would grow until its last prompt."""
    monkeypatch.setattr(batch_decoder, "BLOCK_TOKENS", 8)
    model = tiny_model("hypenet")
    engine = without_ends(model)  # before its calls are counted: it tests the cache
    counted = CountedCalls(model)
    requests = long_tailed(count=18)
    found = answers(engine, requests)
    longest = max(len(request.tokens) + request.sampling.max_new_tokens for request in requests)
    assert counted.widest < 1.3 * longest
    assert answers(without_ends(tiny_model("hypenet"), max_rows=1), requests) == found


def test_finished_rows_are_removed_while_the_next_prompt_does_not_fit():
    model = tiny_model("hypenet")
    engine = without_ends(model)
    rows = []

    def count(module, args, kwargs):
        if kwargs["input_ids"].shape[1] == 1:
            rows.append(len(kwargs["input_ids"]))

    prompts = [*needle_prompts(ROWS, 40, 1), *needle_prompts(1, 400, 1, seed=1)]
    prompts[-1][0] = max(prompt[0] for prompt in prompts) + 1  # so it is the last
    requests = [
        dataclasses.replace(
            request, sampling=dataclasses.replace(request.sampling, max_new_tokens=new)
        )
        for request, new in zip(requests_of(prompts), [40, *[2] * ROWS], strict=True)
    ]
    expected = answers(without_ends(tiny_model("hypenet"), max_rows=1), requests)
    # The short prompts fit together, and the large one fits only alone.
    engine._max_bytes = 1.5 * engine._limits().row_bytes(402)
    assert engine._limits().allow(ROWS, 80)
    model.register_forward_pre_hook(count, with_kwargs=True)
    assert answers(engine, requests) == expected
    assert rows[:1] == [ROWS]
    assert rows.count(ROWS) < 10  # the finished rows wait for a refill, and then are removed
    assert rows.count(1) > 25


@pytest.mark.parametrize("name", ["hypenet", "jet_nemotron", "qwen3_next"])
@pytest.mark.parametrize("rows", [1, 3, 7])
def test_repeats_of_a_question_are_prefilled_once(name, rows):
    # Shorter than a chunk, longer than one, and equal to one up to a chunk; none ends in a piece of
    # one token, which would look like a decode step.
    questions = [needle_prompts(1, n, 1, seed=n)[0] for n in (40, 40, 150)]
    questions[1] = questions[1][::-1].copy()
    questions.append(questions[2].copy())
    questions[3][100] += 1
    prompts = [question for question in questions for _ in range(5)]
    requests = requests_of(prompts, new=4, temperature=0.9)
    model = tiny_model(name)
    engine = engine_of(model, max_rows=rows)
    alone = engine_of(model, max_rows=1, share_prefixes=False)
    counted = CountedCalls(model)
    found = answers(engine, requests)
    ends = 150 - 64
    # Where rows cannot be joined, a batch may end between the repeats of a question, and prefills
    # the two short questions, which have the same length, in one call.
    again = {1: 0, 3: 40 + 40, 7: 40}[rows] if name == "qwen3_next" else 0
    assert counted.prefilled == 40 + 40 + 64 + 2 * ends + again
    counted.prefilled = 0
    assert answers(alone, requests) == found
    assert counted.prefilled == sum(map(len, prompts))


def test_prompts_of_one_depth_do_not_double_the_cache_of_their_batch(monkeypatch):
    monkeypatch.setattr(batch_rows, "_PREFILLED_TOKENS", 1000)
    prompts = needle_prompts(12, 400, 2)
    engine = engine_of(tiny_model("hypenet"), max_rows=12)
    prefill, cached = LanguageModel.prefill, []

    def counted(model, cache, tokens, chunk, start=0):
        cached.append(tokens.shape[0] * tokens.shape[1])
        return prefill(model, cache, tokens, chunk, start)

    monkeypatch.setattr(LanguageModel, "prefill", counted)
    found = answers(engine, requests_of(prompts, new=4))
    assert 400 < max(cached) <= 1000
    monkeypatch.setattr(LanguageModel, "prefill", prefill)
    assert answers(engine_of(tiny_model("hypenet"), max_rows=1), requests_of(prompts, new=4)) == (
        found
    )


def test_memory_that_ends_in_a_refill_restarts_the_unfinished_rows(monkeypatch, caplog):
    requests = long_tailed(count=18)
    expected = answers(engine_of(tiny_model("hypenet"), max_rows=1), requests)
    add, failures = JoinedRows.add, []

    def out_of_memory(batch, cache, rows, *, release=False):
        if release and batch._num_rows > 3:
            failures.append(batch._num_rows)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        add(batch, cache, rows, release=release)

    monkeypatch.setattr(JoinedRows, "add", out_of_memory)
    with caplog.at_level(logging.WARNING):
        found = list(engine_of(tiny_model("hypenet")).generate(requests))
    assert {generation.key: generation for generation in found} == expected
    assert len(found) == len(requests)
    assert failures
    assert "out of memory: batches of 3 rows" in caplog.text


def test_rows_are_as_many_as_fit_into_the_free_memory(monkeypatch):
    model = tiny_model("hypenet")
    requests = requests_of([needle_prompts(1, 50, 1, seed=i)[0] for i in range(12)], new=4)
    engine = engine_of(model, max_rows=None)
    size = engine._limits().row_bytes(54)
    monkeypatch.setattr(
        "amnesia_bench.inference.transformers_engine.free_bytes", lambda _: 6.1 * size / 0.85
    )
    rows = []

    def count(_, args, kwargs):
        if kwargs["input_ids"].shape[1] == 1:
            rows.append(kwargs["input_ids"].shape[0])

    model.register_forward_pre_hook(count, with_kwargs=True)
    answers(engine, requests)
    assert max(rows) == 5  # a sixth row holds the prompt that is being prefilled
