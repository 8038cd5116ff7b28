"""Prefill of a long prompt, decoding in batches, and what happens when memory runs out."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

from acceptance.setup import (
    NotHereError,
    Setup,
    Values,
    peak_bytes,
    synchronize,
)
from amnesia_bench.inference.language_model import prepare_model
from amnesia_bench.inference.protocol import EngineOptions, PromptRequest
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.modeling import causal_attention
from bench_engines import needle_requests


@torch.inference_mode()
def long_prefill(setup: Setup, values: Values) -> None:
    """Prefill 256K tokens in chunks: no mask of all pairs, little memory beyond the cache."""
    tokens, chunk = (1024, 128) if setup.small else (256 * 1024, 2048)
    module = setup.model()
    config = module.config
    model = prepare_model(module)
    ids = torch.randint(0, config.vocab_size, (1, tokens), device=setup.device)
    masks = mock.Mock(side_effect=causal_attention.sdpa_mask)
    with mock.patch.object(causal_attention, "sdpa_mask", masks):
        synchronize()
        started = time.perf_counter()
        logits, cache = model.prefill(model.new_cache(), ids, chunk)
        synchronize()
    seconds = time.perf_counter() - started
    values.note(tokens_per_second=tokens / seconds)
    values.equal("masks", masks.call_count, 0)
    values.equal("logits are finite", bool(logits.isfinite().all()), True)
    values.equal("cached tokens", cache.get_seq_length() if cache is not None else None, tokens)
    if setup.cuda:
        layers = sum(kind == "attn" for kind in config.mixer_types)
        kv = 2 * 2 * layers * config.num_key_value_heads * config.head_dim * tokens
        weights = sum(p.numel() * p.element_size() for p in module.parameters())
        source = "weights, 1.2 times keys and values, 2 GB of working memory"
        values.at_most("peak_bytes", peak_bytes(), weights + 1.2 * kv + 2e9, source)


def decode(setup: Setup, values: Values) -> None:
    """Time a decoding step of 1 and 64 rows, of equal and of unequal lengths."""
    engine = _engine(setup)
    tokens, steps = (64, 8) if setup.small else (1024, 32)
    for rows in (1, 2 if setup.small else 64):
        for padded in (False, True) if rows > 1 else (False,):
            lengths = [tokens - (i * 7 if padded else 0) for i in range(rows)]
            seconds = [_seconds(setup, engine, lengths, 4 + more) for more in (0, 0, steps)]
            kind = "padded" if padded else "equal"
            milliseconds = (seconds[2] - seconds[1]) / steps * 1e3  # the first call warms up
            values.note(**{f"{rows} rows {kind}: ms a step": milliseconds})


def _engine(setup: Setup) -> Any:
    options = EngineOptions(device=setup.device)
    return TransformersEngine(setup.model(), setup.tokenizer(), options)


def _seconds(setup: Setup, engine: Any, lengths: list[int], new: int) -> float:
    synchronize()
    started = time.perf_counter()
    answers = list(engine.generate(_requests(setup, engine, lengths, new)))
    synchronize()
    assert all(len(answer.tokens) == new for answer in answers)
    return time.perf_counter() - started


def _requests(setup: Setup, engine: Any, lengths: list[int], new: int) -> list[PromptRequest]:
    vocab = engine.module.config.vocab_size
    longest = needle_requests(max(2, len(lengths)), max(lengths) + 64, vocab, new)
    return [
        replace(request, tokens=request.tokens[-length:])
        for request, length in zip(longest, lengths, strict=False)
    ]


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def out_of_memory(setup: Setup, values: Values) -> None:
    """Answer a batch that does not fit: the engine halves it, and all answers arrive."""
    if not setup.cuda:
        raise NotHereError("memory of a GPU cannot run out on a CPU")
    engine = _engine(setup)
    lengths = [16_000] * 64
    list(engine.generate(_requests(setup, engine, lengths[:1], 4)))  # compiles the kernels
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    # Keys and values of 64 rows need more than this.
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 16e9) / total)
    heard = _Warnings()
    logging.getLogger("amnesia_bench").addHandler(heard)
    answers = list(engine.generate(_requests(setup, engine, lengths, 4)))
    values.equal("answers", len(answers), len(lengths))
    values.equal("batches were halved", any("out of memory" in m for m in heard.messages), True)
    values.note(messages=heard.messages, peak_bytes=peak_bytes())
