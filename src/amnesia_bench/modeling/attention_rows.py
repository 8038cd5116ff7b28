"""Rows of softmax attention weights for chosen queries, without the T x T matrices.

Shapes: B batch, T tokens, R chosen queries, H query heads, G key/value heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .input_errors import InvalidModelInputError
from .mixers import MixerInputs, SoftmaxMixer
from .modeling_hypenet import HypeNetForCausalLM, HypeNetModel


@torch.no_grad()
def attention_rows(
    model: HypeNetForCausalLM | HypeNetModel,
    input_ids: Tensor,
    queries: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
    attention_mask: Tensor | None = None,
) -> dict[int, Tensor]:
    """Return where chosen queries look, in one forward with the model's own attention function.

    The same numbers as `output_attentions=True` gives, for R rows: B H R T floats a layer in
    place of B H T T.

    Args:
        model: the model, on any device.
        input_ids: tokens [B, T].
        queries: indices of the R queries in the row, negative ones from its end.
        layers: softmax layers to look at; all of them by default.
        attention_mask: [B, T], 0 where a token is padding.

    Returns:
        Per layer the weights after the softmax [B, H, R, T], float32 (float64 for a float64
        model). Rows of queries that are padding mean nothing.

    Raises:
        InvalidModelInputError: a query outside the row, or a layer that is not softmax.
    """
    base: Any = model.base_model
    chosen = base.config.softmax_layers if layers is None else tuple(layers)
    for layer in chosen:
        if layer not in base.config.softmax_layers:
            raise InvalidModelInputError(
                f"layers contains {layer}, which is not a softmax layer",
                hint=f"Softmax layers are {list(base.config.softmax_layers)}.",
            )
    num_tokens = input_ids.shape[1]
    wanted = [query + num_tokens if query < 0 else query for query in queries]
    if not wanted or not all(0 <= query < num_tokens for query in wanted):
        raise InvalidModelInputError(
            f"queries {list(queries)} do not all lie in a row of {num_tokens} tokens"
        )
    index = torch.tensor(wanted, device=input_ids.device)
    rows: dict[int, Tensor] = {}

    def record(mixer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(mixer, SoftmaxMixer)
        rows[mixer.layer_idx] = _weight_rows(mixer, args[0], args[1], index)

    hooks = [base.layers[i].self_attn.register_forward_pre_hook(record) for i in chosen]
    try:
        base(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: rows[layer] for layer in chosen}


def _weight_rows(mixer: SoftmaxMixer, x: Tensor, inputs: MixerInputs, index: Tensor) -> Tensor:
    q, k = mixer.queries_and_keys(x, inputs)
    batch, groups, num_tokens, _ = k.shape
    q = q[:, :, index].unflatten(1, (groups, -1)).flatten(2, 3)  # [B, G, H/G * R, D]
    logits = ((q @ k.mT) * mixer.scaling).view(batch, -1, index.numel(), num_tokens)
    seen = torch.arange(num_tokens, device=x.device) <= index[:, None]  # [R, T]
    mask = seen[None, None]
    if inputs.layout.attention_mask is not None:
        mask = mask & inputs.layout.attention_mask[:, None, None]
    precise = torch.float64 if x.dtype == torch.float64 else torch.float32
    lowest = torch.finfo(logits.dtype).min
    rows: Tensor = logits.masked_fill(~mask, lowest).softmax(dim=-1, dtype=precise)
    return rows
