"""Choosing tokens, and when an answer ends."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest
import torch

from amnesia_bench.errors import StageFailedError
from amnesia_bench.inference.caches import JoinedRows
from amnesia_bench.inference.protocol import EngineOptions
from amnesia_bench.inference.transformers_engine import TransformersEngine
from tests.support.tiny_models import EOS, needle_prompts, requests_of, tiny_model, tiny_tokenizer

LENGTHS = (200, 33, 1, 90, 129, 64, 65, 300)
JOINING = ["hypenet", "qwen2", "llama", "mistral_sliding"]


def engine_of(model, **options):
    values = {"prefill_chunk_tokens": 64, "max_rows": 1}
    return TransformersEngine(model, tiny_tokenizer(), EngineOptions(**(values | options)))


def answers(engine, requests):
    found = {generation.key: generation for generation in engine.generate(requests)}
    assert found.keys() == {request.key for request in requests}
    return found


def unequal_requests(new=6, **sampling):
    prompts = [needle_prompts(1, n + 20, 1, seed=n)[0][:n] for n in LENGTHS]
    return requests_of(prompts, new=new, **sampling)


def widest_step(model):
    """Return a list that will hold the rows of every step of one token; some end a prompt."""
    rows = []

    def count(_, args, kwargs):
        if kwargs["input_ids"].shape[1] == 1:
            rows.append(kwargs["input_ids"].shape[0])

    model.register_forward_pre_hook(count, with_kwargs=True)
    return rows


@pytest.mark.parametrize("name", [*JOINING, "qwen3_next"])
def test_prompts_of_unequal_length_answer_as_they_do_alone(name):
    requests = unequal_requests(new=12)
    alone = answers(engine_of(tiny_model(name)), requests)
    model = tiny_model(name)
    engine, rows = engine_of(model, max_rows=64), widest_step(model)
    assert answers(engine, requests) == alone
    # A model with other layers than ours falls back to one prompt at a time.
    assert max(rows) == (len(LENGTHS) if name in JOINING else 1)


@pytest.mark.parametrize("name", JOINING)
def test_shared_prefixes_and_full_runs_agree_in_batches_over_many_cuts(name):
    prompts = needle_prompts(12, 400, depths=6)
    prompts = [prompt[: len(prompt) - i % 5] for i, prompt in enumerate(prompts)]
    requests = requests_of(prompts, new=5)
    alone = answers(engine_of(tiny_model(name), share_prefixes=False), requests)
    for share in (True, False):
        engine = engine_of(tiny_model(name), share_prefixes=share, max_rows=5)
        assert answers(engine, requests) == alone


@pytest.mark.parametrize("name", JOINING)
def test_samplings_of_all_kinds_share_a_batch(name):
    greedy = unequal_requests(new=9)
    warm = unequal_requests(new=7, temperature=0.7, top_k=20)
    hot = unequal_requests(new=4, temperature=1.5, top_p=0.8)
    requests = [(greedy, warm, hot)[i % 3][i] for i in range(len(LENGTHS))]
    alone = answers(engine_of(tiny_model(name)), requests)
    model = tiny_model(name)
    engine, rows = engine_of(model, max_rows=64), widest_step(model)
    assert answers(engine, requests[::-1]) == alone
    assert max(rows) == len(LENGTHS)
    assert {len(each.tokens) for each in alone.values()} >= {4, 7, 9}


def test_rows_that_end_at_different_times_or_at_once_leave_the_others_alone():
    model = tiny_model("hypenet")
    requests = unequal_requests(new=30, temperature=1.0)
    free = answers(engine_of(model), requests)
    # One row says nothing at all; the others end wherever the same token comes up.
    model.generation_config.eos_token_id = [free[requests[0].key].tokens[0], *range(80, EOS)]
    alone = answers(engine_of(model), requests)
    engine, rows = engine_of(model, max_rows=64), widest_step(model)
    assert answers(engine, requests) == alone
    assert alone[requests[0].key].tokens == ()
    assert len({len(each.tokens) for each in alone.values()}) >= 4
    decoded = rows[rows.index(max(rows)) :]
    assert decoded == sorted(decoded, reverse=True)
    assert decoded[-1] <= len(LENGTHS) // 2


def test_answers_come_out_as_they_are_finished():
    model = tiny_model("qwen2")
    short, long = unequal_requests(new=2), unequal_requests(new=20)
    requests = [long[0], short[1], long[3], short[5]]
    engine, steps = engine_of(model, max_rows=64), widest_step(model)
    came = [(generation.key.doc, len(steps)) for generation in engine.generate(requests)]
    assert [doc for doc, _ in came[:2]] == [1, 5]
    assert came[1][1] == 1
    assert came[-1][1] == 19


def test_a_row_at_the_end_of_the_context_is_not_pushed_out_by_its_neighbours():
    model = tiny_model("hypenet")
    model.config.max_position_embeddings = 210
    # Long prompts with short answers are done before the others, and not half of the batch.
    short, long = unequal_requests(new=10), unequal_requests(new=100)
    requests = [short[0], long[1], long[2], long[3]]
    alone = answers(engine_of(model), requests)
    assert answers(engine_of(model, max_rows=64), requests) == alone
    assert any(len(alone[request.key].tokens) == 100 for request in requests[1:])


@pytest.mark.parametrize("name", JOINING)
def test_memory_that_ends_while_rows_are_joined_halves_the_batch(name, monkeypatch, caplog):
    # Nearly of one length: as many rows as tokens allow, but none are read together.
    prompts = [needle_prompts(1, 100, 1, seed=i)[0][i:] for i in range(8)]
    requests = requests_of(prompts)
    expected = answers(engine_of(tiny_model(name)), requests)
    engine = engine_of(tiny_model(name), max_rows=64)
    add, failures = JoinedRows.add, []

    def out_of_memory(batch, cache, rows, **options):
        # Only when some rows have been copied, and read over by the next.
        if batch._num_rows > 3 and batch._filled > 1:
            failures.append(batch._num_rows)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        add(batch, cache, rows, **options)

    monkeypatch.setattr(JoinedRows, "add", out_of_memory)
    with caplog.at_level(logging.WARNING):
        assert answers(engine, requests) == expected
    assert failures == [8, 4]
    assert "out of memory: batches of 4 rows of 106 tokens from now on" in caplog.text


@pytest.mark.parametrize("share", [True, False])
def test_memory_that_ends_while_rows_decode_repeats_no_finished_answer(share, caplog):
    requests = [
        dataclasses.replace(
            request,
            sampling=dataclasses.replace(request.sampling, max_new_tokens=2 + 3 * (i % 4)),
        )
        for i, request in enumerate(requests_of(needle_prompts(8, 150, depths=4)))
    ]
    expected = answers(engine_of(tiny_model("hypenet")), requests)
    model = tiny_model("hypenet")
    engine = engine_of(model, max_rows=64, share_prefixes=share)

    failures = []

    def out_of_memory(_, args, kwargs):
        held, rows = kwargs["past_key_values"].get_seq_length(), kwargs["input_ids"].shape[0]
        # Room for two steps of all eight rows.
        if rows * (held + 1) > 8 * 152:
            failures.append(rows)
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.register_forward_pre_hook(out_of_memory, with_kwargs=True)
    with caplog.at_level(logging.WARNING):
        answering = engine.generate(requests)
        found = [next(answering), next(answering)]
        assert not failures
        found += answering
    assert failures == [8]
    assert len(found) == len(expected)
    assert {generation.key: generation for generation in found} == expected
    assert "out of memory" in caplog.text


def test_verification_holds_for_joined_rows(caplog):
    model = tiny_model("hypenet")
    requests = requests_of(needle_prompts(10, 300, depths=5), new=8)
    engine = engine_of(model, max_rows=64, verify_prefix=5)
    with caplog.at_level(logging.WARNING):
        answers(engine, requests)
    assert not caplog.records


def test_a_prompt_of_one_token_beside_a_long_one_sees_no_padding():
    model = tiny_model("qwen2")
    prompts = [np.array([5], np.int32), needle_prompts(1, 500, 1)[0]]
    requests = requests_of(prompts, new=10)
    assert answers(engine_of(model, max_rows=64), requests) == answers(engine_of(model), requests)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_logits_that_are_not_finite_are_an_error_and_no_answer(value, temperature):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = value
    requests = unequal_requests(temperature=temperature)
    with pytest.raises(StageFailedError, match=r"document \d: the model's logits are NaN or inf"):
        answers(engine_of(model, max_rows=64), requests)


def test_answers_before_logits_that_are_not_finite_stand():
    model = tiny_model("llama")
    found = []

    def answer_three():
        for generation in engine_of(model).generate(unequal_requests()):
            found.append(generation.key)
            if len(found) == 3:
                model.lm_head.weight.data[:] = float("nan")

    with pytest.raises(StageFailedError, match="logits are NaN"):
        answer_three()
    assert len(found) == 3


def test_single_logits_of_minus_infinity_are_no_fault():
    model, plain = tiny_model("llama"), tiny_model("llama")
    requests = unequal_requests()
    expected = answers(engine_of(plain), requests)
    said = {token for generation in expected.values() for token in generation.tokens}
    unsaid = next(token for token in range(plain.config.vocab_size) if token not in {*said, EOS})

    def rule_out(_, args, output):
        output[..., unsaid] = float("-inf")

    model.lm_head.register_forward_hook(rule_out)
    assert answers(engine_of(model), requests) == expected
