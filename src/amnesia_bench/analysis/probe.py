"""A probe for the softmax layers of any model that uses transformers' attention interface.

Inside `probing`, a model computes the same forward and backward pass as with SDPA. Consumers
receive the softmax weights of each layer in the forward pass, and the magnitudes of the gradients
with respect to its attention logits in the backward pass, one block of queries at a time. The
tensors for a layer are freed after that layer, and no hook remains on the model.

Shapes: B batch, T tokens, H query heads, G key/value heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from amnesia_bench.analysis.row_blocks import (
    AttentionCall,
    CausalPairs,
    Consumer,
    MaskedPairs,
    visible_pairs,
)
from amnesia_bench.errors import UserError
from amnesia_bench.modeling.causal_attention import causal_sdpa

PROBE = "amnesia_probe"
BLOCK_QUERIES = 256
# Options of attention functions that change the logits or the softmax. SDPA does not support them.
_BEYOND_SOFTMAX = ("softcap", "s_aux", "sinks", "position_bias")


@dataclass(frozen=True)
class _Probe:
    weights: Consumer | None
    gradients: Consumer | None
    block_queries: int
    first_query: int


_active: list[_Probe] = []


@contextmanager
def probing(
    model: Any,
    *,
    weights: Consumer | None = None,
    gradients: Consumer | None = None,
    block_queries: int = BLOCK_QUERIES,
    first_query: int = 0,
) -> Iterator[None]:
    """Inside the `with` block, pass the attention of a model's softmax layers to consumers.

    Args:
        model: a transformers model; its attention function is restored afterwards.
        weights: called with blocks of softmax weights in each forward pass.
        gradients: called with blocks of |dL/ds| in each backward pass.
        block_queries: number of queries per block.
        first_query: the consumers receive the rows of this query and of those after it.
    """
    config = model.config
    parts = {key: getattr(config, key) for key in config.sub_configs}
    saved = {"": config._attn_implementation} | {
        key: part._attn_implementation for key, part in parts.items() if part is not None
    }
    if _active:
        raise RuntimeError("only one probe can be active")
    _active.append(_Probe(weights, gradients, block_queries, first_query))
    try:
        model.set_attn_implementation(PROBE)
        yield
    finally:
        _active.clear()
        model.set_attn_implementation(saved)


def probe_attention(  # noqa: PLR0913 - transformers' attention interface
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: MaskedPairs | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute SDPA attention without dropout, and call the consumers of the active probe.

    Args:
        module: the attention module that calls this function; `layer_idx` is its layer index.
        query: the queries [B, H, T, D].
        key: the keys [B, G, T, D].
        value: the values [B, G, T, D].
        attention_mask: the return value of `visible_pairs`.
        scaling: the factor by which the logits are scaled; None means D^-1/2.
        dropout: ignored.
        **options: further options of transformers' attention interface.

    Returns:
        The attention output [B, T, H, D], and None instead of attention weights.

    Raises:
        UserError: the attention is not of the form softmax(scale q k^T + mask) v.
    """
    (probe,) = _active
    _check_kind(module, query, key, attention_mask, options)
    if attention_mask is None:
        output: Tensor = causal_sdpa(module, query, key, value, None, scaling=scaling)[0]
    else:
        output = _attend_in_blocks(module, (query, key, value), attention_mask, scaling)
    pairs = CausalPairs(query.device) if attention_mask is None else attention_mask
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: Any = module.layer_idx

    def call(q: Tensor, k: Tensor, v: Tensor) -> AttentionCall:
        return AttentionCall(layer, q, k, v, scale, pairs, probe.block_queries, probe.first_query)

    if probe.weights is not None:
        with torch.no_grad():
            for block in call(query, key, value).weights():
                probe.weights(block)
    if probe.gradients is not None and output.requires_grad:
        tap: Any = _GradientTap
        output = tap.apply(output, query, key, value, (call, probe.gradients))
    return output, None


class _GradientTap(torch.autograd.Function):
    """The identity function; its backward pass computes |dL/ds| and passes it to a consumer."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, query: Tensor, key: Tensor, value: Tensor, watch: Any
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.watch = watch
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        call, consume = ctx.watch
        for block in call(*ctx.saved_tensors).gradients(upstream.transpose(1, 2)):
            consume(block)
        return upstream, None, None, None, None


def _attend_in_blocks(
    module: nn.Module, qkv: tuple[Tensor, Tensor, Tensor], pairs: MaskedPairs, scale: float | None
) -> Tensor:
    """Compute attention one query block at a time; the backward pass rebuilds each mask."""
    query, key, value = qkv
    block_queries = _active[0].block_queries

    def attend(start: int, stop: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        first, visible = pairs.block(start, stop)
        k, v = key[:, :, first:stop], value[:, :, first:stop]
        output: Tensor = sdpa_attention_forward(
            module, query[:, :, start:stop], k, v, visible, scaling=scale
        )[0]
        return output

    outputs = []
    for start in range(0, query.shape[2], block_queries):
        stop = min(start + block_queries, query.shape[2])
        if torch.is_grad_enabled():
            output: Any = checkpoint(attend, start, stop, query, key, value, use_reentrant=False)
            outputs.append(output)
        else:
            outputs.append(attend(start, stop, query, key, value))
    return torch.cat(outputs, dim=1)


def _check_kind(
    module: nn.Module, query: Tensor, key: Tensor, mask: object, options: dict[str, Any]
) -> None:
    name = type(module).__name__
    for option in _BEYOND_SOFTMAX:
        if options.get(option) is not None:
            raise UserError(f"{name}: its attention has {option}, which the probe cannot measure")
    if options.get("is_causal") is False or not getattr(module, "is_causal", True):
        raise UserError(f"{name}: its attention is not causal")
    if query.shape[2] != key.shape[2]:
        raise UserError(f"{name}: {query.shape[2]} queries see {key.shape[2]} keys: not a prefill")
    if mask is not None and not isinstance(mask, MaskedPairs):
        raise UserError(f"{name}: it does not build its attention mask with transformers")
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int) or layer < 0:  # a block that several layers share
        raise UserError(f"{name}: its attention has no layer index")


AttentionInterface.register(PROBE, probe_attention)
AttentionMaskInterface.register(PROBE, visible_pairs)
