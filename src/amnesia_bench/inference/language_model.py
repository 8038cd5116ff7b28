"""A causal LM of transformers behind two calls: a new cache, and more tokens into it.

Where memory runs out, the error says how many tokens it reached.

Shapes: B rows, T new tokens, E vocabulary.
"""

from __future__ import annotations

import functools
import gc
import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from amnesia_bench.errors import UserError
from amnesia_bench.inference.caches import JoinedRows, ResumableCache, can_join, can_resume
from amnesia_bench.modeling import HypeNetCache, HypeNetConfig
from amnesia_bench.modeling.causal_attention import CAUSAL_SDPA


class MemoryExhaustedError(Exception):
    """Memory ran out; `fits` tokens were in the cache before.

    Caught inside the engine: fewer rows may fit, and a message must name the length that does.
    """

    def __init__(self, fits: int) -> None:
        super().__init__(f"out of memory behind token {fits:,}")
        self.fits = fits


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch says so; the CPU's allocator has no class for it."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextmanager
def reaching(num_tokens: int) -> Iterator[None]:
    """Turn torch's errors about memory into a `MemoryExhaustedError` behind `num_tokens`."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryExhaustedError(num_tokens) from error


def release_memory() -> None:
    """Give back what failed work left. Call it outside of the handler, which still holds that."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


log = logging.getLogger(__name__)

# Long enough to cross a chunk of 64 of the linear layers before the cut and behind it. Right behind
# the cut a lost convolution tail shows most.
_PROBE_TOKENS, _CUT_TOKENS, _NEAR_TOKENS = 160, 70, 2
# Their frequencies follow the longest row of a batch: its neighbours would change.
_RESCALED_ROPE = frozenset(("dynamic", "longrope"))


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model, and what was found out about its cache.

    `full_reason` says why prompts cannot share a prefix, None where they can. `in_pieces` is
    whether a prompt may be read piece by piece, `joins_rows` whether prompts of unequal length may
    go on side by side in one cache.
    """

    module: Any
    cache_class: type[Cache] | None
    in_pieces: bool
    full_reason: str | None
    joins_rows: bool

    @property
    def device(self) -> torch.device:
        """Where tokens go in."""
        device: torch.device = self.module.get_input_embeddings().weight.device
        return device

    @functools.cached_property
    def takes(self) -> frozenset[str]:
        """The names of what the model's forward takes."""
        return frozenset(inspect.signature(self.module.forward).parameters)

    def new_cache(self) -> Cache | None:
        """Return an empty cache; None where only the model knows how to make its own."""
        return None if self.cache_class is None else self.cache_class(self.module.config)

    def advance(
        self, cache: Cache | None, tokens: Tensor, padding: Tensor | None = None
    ) -> tuple[Tensor, Cache | None]:
        """Read tokens [B, T] behind what the cache holds.

        Args:
            cache: what was read before.
            tokens: the new ones.
            padding: how many of the first tokens in each row of the cache are padding [B].

        Returns:
            The logits of the last one [B, E], float32, and the cache.
        """
        options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in self.takes else {}
        if padding is not None:
            assert cache is not None
            held = cache.get_seq_length()
            column = torch.arange(held + tokens.shape[1], device=padding.device)
            position = column - padding[:, None]
            options |= {
                "attention_mask": (position >= 0).long(),
                "position_ids": position[:, held:],
            }
        output = self.module(
            input_ids=tokens.to(self.device), past_key_values=cache, use_cache=True, **options
        )
        return output.logits[:, -1].float(), getattr(output, "past_key_values", None)

    def read(
        self, cache: Cache | None, tokens: Tensor, chunk: int, start: int = 0
    ) -> tuple[Tensor, Cache | None]:
        """Read a prompt [B, T] in pieces of `chunk` tokens; return as `advance` does.

        Raises:
            MemoryExhaustedError: memory ran out; `start` tokens were in the cache before.
        """
        logits: Tensor | None = None
        size = chunk if self.in_pieces else tokens.shape[1]
        for part in torch.split(tokens, size, dim=1):
            with reaching(start):
                logits, cache = self.advance(cache, part)
            start += part.shape[1]
        assert logits is not None
        return logits, cache


def token_rows(prompts: Sequence[NDArray[np.int32]]) -> Tensor:
    """Return tokens int64 [B, T] of prompts of equal length, in host memory."""
    return torch.from_numpy(np.stack(prompts).astype(np.int64))


@torch.inference_mode()
def prepare_model(module: Any, limit: int | None = None) -> LanguageModel:
    """Replace sdpa attention by `causal_sdpa`, and try the model's cache on a few random tokens.

    Whether a model continues from its cache cannot be told from its class: linear layers of some
    models start again from zero when more than one token follows, and say nothing.

    Args:
        module: the model, on its device.
        limit: tokens that it takes, None for any number.

    Raises:
        UserError: the model returns no cache, or takes too few tokens to try it.
    """
    name = type(module).__name__
    near = _CUT_TOKENS + _NEAR_TOKENS
    if limit is not None and limit <= near:
        raise UserError(
            f"{name}: a context of {limit} tokens is too short to try its cache",
            hint=f"Allow at least {near + 1}: --max-context-tokens N.",
        )
    if module.config._attn_implementation == "sdpa":
        module.set_attn_implementation(CAUSAL_SDPA)
    bare = LanguageModel(module, None, in_pieces=False, full_reason=None, joins_rows=False)
    vocabulary = module.get_input_embeddings().weight.shape[0]
    generator = torch.Generator("cpu").manual_seed(0)
    probe = torch.randint(0, vocabulary, (1, _PROBE_TOKENS), generator=generator)[:, :limit]
    whole, cache = bare.advance(None, probe)
    if cache is None:
        raise UserError(
            f"{name} returns no past_key_values: tokens cannot be generated one by one",
            hint="Models that keep their states in modules are not supported.",
        )
    kind = _own_cache_class(cache)
    model = LanguageModel(module, kind, in_pieces=False, full_reason=None, joins_rows=False)
    head, *pieces = probe.tensor_split([_CUT_TOKENS, near], dim=1)
    expected = [bare.advance(None, probe[:, :near])[0], whole]
    resumable: Any = model.advance(model.new_cache(), head)[1]
    snapshot = resumable.snapshot() if can_resume(resumable) else None
    found = _continued(model, resumable, pieces)
    # Sound models were seen to be off by 1e-5 (float32) and 2e-2 (bfloat16) of the norm; the
    # root of the smallest step is 3e-4 and 9e-2.
    tolerance = torch.finfo(module.dtype).eps ** 0.5
    in_pieces, reason = _equal(found, expected, tolerance), None
    if snapshot is None:
        reason = f"no snapshot can be taken of {_culprit(resumable)}"
    elif not whole.isfinite().all():
        reason = f"{name} computes NaN or infinity for random tokens"
    elif not in_pieces:
        reason = f"{name} does not continue exactly from its cache"
    else:
        resumable.resume(snapshot)
        # The same calls as the first time: hardly any rounding to allow for.
        if not _equal(_continued(model, resumable, pieces), found, tolerance / 4):
            reason = f"{name} does not come back exactly from a snapshot"
    if reason is not None:
        log.warning("prompts will not share prefixes: %s", reason)
    if not in_pieces:
        log.warning("prompts will be read in one piece: long ones need much memory")
    joins = in_pieces and _joins(model, probe, tolerance)
    return LanguageModel(module, kind, in_pieces=in_pieces, full_reason=reason, joins_rows=joins)


def _joins(model: LanguageModel, probe: Tensor, tolerance: float) -> bool:
    """Whether rows of unequal length say side by side what they say alone."""
    rope = _rope_types(model.module.config)
    if rope & _RESCALED_ROPE or not model.takes >= {"attention_mask", "position_ids"}:
        return False
    tail = torch.split(probe[:, :2], 1, dim=1)  # two tokens [1, 1]
    heads = [probe[:, : probe.shape[1] // part] for part in (2, 4)]
    joined: JoinedRows | None = None
    alone = []
    for head in heads:
        cache = model.advance(model.new_cache(), head)[1]
        if not can_join(cache):
            return False
        joined = joined or JoinedRows(model.new_cache(), len(heads), heads[0].shape[1])
        joined.add(cache, 1)
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
    """Return the kinds of RoPE of a model; some have one per kind of layer."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [rope, *(each for each in rope.values() if isinstance(each, dict))]
    return {kind["rope_type"] for kind in kinds if "rope_type" in kind}


def _own_cache_class(cache: Cache) -> type[Cache] | None:
    if isinstance(cache, HypeNetCache):
        return HypeNetCache
    return ResumableCache if type(cache) is DynamicCache else None


def _culprit(cache: Cache | None) -> str:
    layer = cache.foreign_layer if isinstance(cache, ResumableCache) else None
    return f"a cache layer {layer}" if layer else f"a {type(cache).__name__}"


def _continued(model: LanguageModel, cache: Cache | None, pieces: Sequence[Tensor]) -> list[Tensor]:
    """Return the logits behind each piece."""
    found = []
    for piece in pieces:
        logits, cache = model.advance(cache, piece)
        found.append(logits)
    return found


def _equal(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> bool:
    return all(
        bool((logits - right).norm() <= tolerance * right.norm())
        for logits, right in zip(found, expected, strict=True)
    )


def context_limit(config: Any, override: int | None) -> int | None:
    """Return how many tokens a prompt and its answer may have; None for no limit.

    Args:
        config: of the model. Its `max_position_embeddings` counts, except for a HypeNet without
            RoPE anywhere, to which positions mean nothing beyond the logit scale.
        override: the user's limit, in place of the config's.
    """
    if override is not None:
        return override
    if isinstance(config, HypeNetConfig):
        without_rope = not (config.attn_use_rope or config.lightning_use_rope)
        return None if without_rope else config.max_position_embeddings
    return getattr(config.get_text_config(), "max_position_embeddings", None)
