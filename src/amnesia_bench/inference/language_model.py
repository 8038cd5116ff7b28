"""A causal LM of transformers with its KV cache: cache creation, prefill, and decoding steps.

Shapes: B rows, T new tokens, E vocabulary size.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from amnesia_bench.errors import UserError
from amnesia_bench.inference.caches import (
    JoinedRows,
    ResumableCache,
    RowCache,
    can_join,
    can_resume,
)
from amnesia_bench.inference.layer_memo import LayerMemo
from amnesia_bench.inference.memory import catching_oom
from amnesia_bench.modeling import HypeNetCache
from amnesia_bench.modeling.causal_attention import CAUSAL_SDPA
from amnesia_bench.modeling.hybrid_config import HybridConfig

log = logging.getLogger(__name__)

# For the cache test. The parts before and after the cut are longer than a 64-token chunk of the
# linear layers. A lost convolution tail has its largest effect directly after the cut.
_PROBE_TOKENS, _CUT_TOKENS, _NEAR_TOKENS = 160, 70, 2
_TF32_EPSILON = 2.0**-10  # TF32 keeps 10 bits of the mantissa
# With these RoPE types, frequencies depend on the longest row of a batch: rows affect each other.
_RESCALED_ROPE = frozenset(("dynamic", "longrope"))
_UNMEASURED = RowCache(token_bytes=0.0, windows=(), state_bytes=0.0)


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model, and the capabilities of its cache.

    `full_reason` is the reason why prompts cannot share prefixes, or None if they can.
    `chunked_prefill` states whether a prompt may be prefilled in chunks, and `joins_rows` whether
    prompts of different lengths may be decoded in one batch. `row_cache` is the size of a row's
    cache. `memo` is set while models that share their lower layers answer the same prompts.
    """

    module: Any
    cache_class: type[Cache] | None
    chunked_prefill: bool
    full_reason: str | None
    joins_rows: bool
    row_cache: RowCache = _UNMEASURED
    memo: LayerMemo | None = None

    @property
    def device(self) -> torch.device:
        """The device of the input embeddings."""
        device: torch.device = self.module.get_input_embeddings().weight.device
        return device

    @functools.cached_property
    def forward_parameters(self) -> frozenset[str]:
        """The parameter names of the model's `forward` method."""
        return frozenset(inspect.signature(self.module.forward).parameters)

    def new_cache(self) -> Cache | None:
        """Return an empty cache, or None if only the model itself can create its cache."""
        return None if self.cache_class is None else self.cache_class(self.module.config)

    def advance(
        self, cache: Cache | None, tokens: Tensor, padding: Tensor | None = None
    ) -> tuple[Tensor, Cache | None]:
        """Run the model on new tokens, and append them to the cache.

        Args:
            cache: the cache of the previous tokens.
            tokens: ids of the new tokens [B, T].
            padding: number of padding tokens at the beginning of each cache row [B]; only for one
                new token per row.

        Returns:
            The logits after the last token [B, E], float32, and the updated cache.
        """
        options: dict[str, Any] = {}
        if "logits_to_keep" in self.forward_parameters:
            options["logits_to_keep"] = 1
        if padding is not None:
            assert cache is not None
            assert tokens.shape[1] == 1
            column = torch.arange(cache.get_seq_length() + 1, device=padding.device)
            position = column - padding[:, None]
            if self.cache_class is HypeNetCache:
                # A mask of this shape states that the new tokens are not padding. HypeNet would
                # look for padding in a mask [B, P + 1], and wait for the device at every token.
                options["attention_mask"] = (position >= 0)[:, None, None]
            else:
                options["attention_mask"] = (position >= 0).long()
                options["position_ids"] = position[:, -1:]
        output = self.module(
            input_ids=tokens.to(self.device), past_key_values=cache, use_cache=True, **options
        )
        return output.logits[:, -1].float(), getattr(output, "past_key_values", None)

    def prefill(
        self, cache: Cache | None, tokens: Tensor, chunk: int, start: int = 0
    ) -> tuple[Tensor, Cache | None]:
        """Run `advance` on prompts in chunks of `chunk` tokens; the return values are the same.

        Args:
            cache: the cache of the first `start` tokens.
            tokens: ids of the prompts from their first token on [B, start + T].
            chunk: prefill chunk size in tokens.
            start: number of tokens in the cache.

        Raises:
            MemoryExhaustedError: memory ran out.
        """
        logits: Tensor | None = None
        size = chunk if self.chunked_prefill else tokens.shape[1] - start
        for part in torch.split(tokens[:, start:], size, dim=1):
            end = start + part.shape[1]
            shared = self.memo.prefilling(cache, tokens[:, :end], start) if self.memo else None
            with catching_oom(start), shared or nullcontext():
                logits, cache = self.advance(cache, part)
            start = end
        assert logits is not None
        return logits, cache


def token_rows(prompts: Sequence[NDArray[np.int32]]) -> Tensor:
    """Return the token ids of prompts of equal length, int64 [B, T], in host memory."""
    return torch.from_numpy(np.stack(prompts).astype(np.int64))


@torch.inference_mode()
def prepare_model(module: Any, limit: int | None = None) -> LanguageModel:
    """Replace SDPA attention with `causal_sdpa`, and test the model's cache on random tokens.

    The class of a model does not show whether it continues correctly from its cache: the linear
    layers of some models silently restart from a zero state if more than one token follows.

    Args:
        module: the model, on its device.
        limit: maximum context length in tokens; None for no limit.

    Raises:
        UserError: the model returns no cache, or `limit` is too short for the test.
    """
    name = type(module).__name__
    probe = _probe_tokens(module, limit)
    if module.config._attn_implementation == "sdpa":
        module.set_attn_implementation(CAUSAL_SDPA)
    bare = LanguageModel(module, None, chunked_prefill=False, full_reason=None, joins_rows=False)
    whole, cache = bare.advance(None, probe)
    if cache is None:
        raise UserError(
            f"{name} returns no past_key_values: tokens cannot be generated one by one",
            hint="Models that keep their states in modules are not supported.",
        )
    model = replace(bare, cache_class=_resumable_cache_class(cache))
    near = _CUT_TOKENS + _NEAR_TOKENS
    head, *pieces = probe.tensor_split([_CUT_TOKENS, near], dim=1)
    expected = [bare.advance(None, probe[:, :near])[0], whole]
    resumable: Any = model.advance(model.new_cache(), head)[1]
    snapshot = resumable.snapshot() if can_resume(resumable) else None
    actual = _continued(model, resumable, pieces)
    tolerance = _tolerance(module.dtype, model.device)
    chunked, reason = _equal(actual, expected, tolerance), None
    # The reason is part of the settings, whose hash names the folder of answers: keep its wording.
    if snapshot is None:
        reason = f"no snapshot can be taken of {_unsupported_part(resumable)}"
    elif not whole.isfinite().all():
        reason = f"{name} computes NaN or infinity for random tokens"
    elif not chunked:
        reason = f"{name} does not continue exactly from its cache"
    else:
        resumable.resume(snapshot)
        # These calls are the same as the first ones, so rounding is almost the same.
        if not _equal(_continued(model, resumable, pieces), actual, tolerance / 4):
            reason = f"{name} does not come back exactly from a snapshot"
    if reason is not None:
        log.warning("prompts will not share prefixes: %s", reason)
    if not chunked:
        log.warning("prompts will be prefilled in one chunk: long ones need much memory")
    return replace(
        model,
        chunked_prefill=chunked,
        full_reason=reason,
        joins_rows=chunked and _joins(model, probe, tolerance),
        row_cache=RowCache.measure(cache, module.config),
    )


def _tolerance(dtype: torch.dtype, device: torch.device) -> float:
    """Return the tolerance of the cache test: the square root of the epsilon of the products.

    It is 3e-4 for float32 and 9e-2 for bfloat16. In our tests, logits of correct models differ by
    up to 1e-5 (float32) and 2e-2 (bfloat16) of their norm. On CUDA it is 3e-2 for float32: Triton
    multiplies float32 operands in TF32 by default, as in the chunked kernels of linear layers, but
    not in the kernels for single tokens; and torch does so if it is allowed to.
    """
    epsilon: float = torch.finfo(dtype).eps
    if dtype == torch.float32 and device.type == "cuda":
        epsilon = _TF32_EPSILON
    return math.sqrt(epsilon)


def _probe_tokens(module: Any, limit: int | None) -> Tensor:
    """Return random token ids for the cache test [1, T]; T is at most `limit`."""
    near = _CUT_TOKENS + _NEAR_TOKENS
    if limit is not None and limit <= near:
        raise UserError(
            f"{type(module).__name__}: a context of {limit} tokens is too short to test its cache",
            hint=f"Allow at least {near + 1}: --max-context-tokens N.",
        )
    vocabulary = module.get_input_embeddings().weight.shape[0]
    generator = torch.Generator("cpu").manual_seed(0)
    return torch.randint(0, vocabulary, (1, _PROBE_TOKENS), generator=generator)[:, :limit]


def _joins(model: LanguageModel, probe: Tensor, tolerance: float) -> bool:
    """Return whether rows of different lengths have the same logits in one batch as alone."""
    rope = _rope_types(model.module.config)
    if rope & _RESCALED_ROPE or not model.forward_parameters >= {"attention_mask", "position_ids"}:
        return False
    tail = torch.split(probe[:, :2], 1, dim=1)  # the ids of two tokens, each [1, 1]
    heads = [probe[:, : probe.shape[1] // part] for part in (2, 4)]
    joined: JoinedRows | None = None
    alone = []
    for head in heads:
        cache = model.advance(model.new_cache(), head)[1]
        if not can_join(cache):
            return False
        joined = joined or JoinedRows(model.new_cache(), len(heads), heads[0].shape[1])
        joined.add(cache, [0])
        alone.append(_continued(model, cache, tail))
    assert joined is not None
    padding = torch.tensor([heads[0].shape[1] - head.shape[1] for head in heads])
    cache = joined.cache
    for i, token in enumerate(tail):
        expected = torch.cat([logits[i] for logits in alone])
        logits, _ = model.advance(cache, token.expand(len(heads), 1), padding.to(model.device))
        if not _equal([logits], [expected], tolerance):
            return False
    return True


def _rope_types(config: Any) -> set[str]:
    """Return the RoPE types of a model; some models have one RoPE type per kind of layer."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    parameters = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return {each["rope_type"] for each in parameters if "rope_type" in each}


def _resumable_cache_class(cache: Cache) -> type[Cache] | None:
    if isinstance(cache, HypeNetCache):
        return HypeNetCache
    return ResumableCache if type(cache) is DynamicCache else None


def _unsupported_part(cache: Cache | None) -> str:
    layer = cache.unsupported_layer if isinstance(cache, ResumableCache) else None
    return f"a cache layer {layer}" if layer else f"a {type(cache).__name__}"


def _continued(model: LanguageModel, cache: Cache | None, pieces: Sequence[Tensor]) -> list[Tensor]:
    """Advance the cache by each piece in turn; return the logits after each piece."""
    last_logits = []
    for piece in pieces:
        logits, cache = model.advance(cache, piece)
        last_logits.append(logits)
    return last_logits


def _equal(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> bool:
    return all(
        bool((logits - right).norm() <= tolerance * right.norm())
        for logits, right in zip(actual, expected, strict=True)
    )


def context_limit(config: Any, override: int | None) -> int | None:
    """Return the maximum number of tokens of a prompt and its answer; None for no limit.

    Args:
        config: the model's config. Its `max_position_embeddings` is the limit, except for a
            HypeNet without any RoPE, which uses positions only to scale the logits.
        override: the user's limit, which replaces that of the config; None for no override.
    """
    if override is not None:
        return override
    if isinstance(config, HybridConfig):
        return config.max_position_embeddings if config.uses_positions else None
    return getattr(config.get_text_config(), "max_position_embeddings", None)
