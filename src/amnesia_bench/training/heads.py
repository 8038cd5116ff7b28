"""How each trainable family computes logits from hidden states and isolates packed documents.

Tests cover every family in the table: they compare our loss and gradients with those of the model's
own forward pass, and packed documents with the same documents in separate rows. `loss_check`
repeats the comparison of the loss with the actual model when a run starts.

Shapes: N positions, M hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from amnesia_bench.errors import UserError

# How the model isolates the documents of one row. `positions`: positions restart in each document,
# and attention runs per document. `boundaries`: the model's forward accepts cu_seqlens. `alone`:
# the model cannot isolate them, so each row must contain one document.
Documents = Literal["positions", "boundaries", "alone"]


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """The properties of a family that training depends on.

    `times`, `over` and `cap` name keys of config.json. Logits are multiplied by the value of
    `times`, divided by the value of `over`, and soft-capped with the value of `cap`:
    cap * tanh(logits / cap). If that value is null, logits are not capped.
    """

    documents: Documents
    times: str | None = None
    over: str | None = None
    cap: str | None = None


def _rows(documents: Documents, *kinds: str, **keys: str) -> dict[str, Trainable]:
    return dict.fromkeys(kinds, Trainable(documents=documents, **keys))


TRAINABLE: Mapping[str, Trainable] = {
    **_rows("boundaries", "hypenet", "jet_nemotron"),
    **_rows("positions", "llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gemma", "olmo"),
    **_rows("positions", "olmo2", "olmo3", "smollm3", "exaone4", "glm", "glm4", "seed_oss"),
    **_rows("positions", "ernie4_5", "hunyuan_v1_dense", "starcoder2", "helium", "arcee"),
    **_rows("positions", "ministral", "ministral3"),
    **_rows("positions", "gemma3_text", "nanochat", cap="final_logit_softcapping"),
    **_rows("positions", "cohere", "cohere2", times="logit_scale"),
    **_rows("positions", "granite", over="logits_scaling"),
    **_rows("positions", "hyperclovax", times="logits_scaling"),
    # Gemma 2 also soft-caps its attention logits, which no fused kernel supports.
    **_rows("alone", "gemma2", cap="final_logit_softcapping"),
    # These families do not reset their recurrent states at document boundaries.
    **_rows("alone", "qwen3_5_text", "bamba", "lfm2"),
    **_rows("alone", "falcon_h1", times="lm_head_multiplier"),
    **_rows("alone", "granitemoehybrid", over="logits_scaling"),
    **_rows("alone", "recurrent_gemma", cap="logits_soft_cap"),
}


# The assumed properties of a model whose code comes with its checkpoint; `loss_check` tests the
# assumption about the logits.
_UNKNOWN = Trainable(documents="alone")


def trainable(model_type: object) -> Trainable:
    """Return the properties of the family with this model_type, or the assumed ones if unknown."""
    known = isinstance(model_type, str) and model_type in TRAINABLE
    return TRAINABLE[str(model_type)] if known else _UNKNOWN


@dataclass(frozen=True)
class Head:
    """The map from hidden states h to logits: cap * tanh(scale * (W h + b) / cap).

    Attributes:
        weight: W [V, M].
        bias: b [V].
        scale: a factor on the logits.
        cap: the soft cap of the logits; None for no cap.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [N, V] for hidden states [N, M], in float32 (float64 for float64)."""
        product = hidden @ self.weight.mT
        if self.bias is not None:
            product += self.bias
        logits = product.to(torch.float64 if hidden.dtype == torch.float64 else torch.float32)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else (logits / self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """Return the derivative of these logits with respect to W h + b."""
        return self.scale if self.cap is None else (1 - (logits / self.cap).square()) * self.scale


def head_of(model: Any) -> Head:
    """Return the head of a causal LM, which refers to its current weights.

    Raises:
        UserError: the head is not a single matrix, or a value in the config is not a number.
    """
    output, row = model.get_output_embeddings(), trainable(model.config.model_type)
    if getattr(output, "weight", None) is None:
        raise UserError(f"the head of a {model.config.model_type} model is not a single matrix")
    scale = 1.0 if row.times is None else _number(model, row.times)
    if row.over is not None:
        scale /= _number(model, row.over)
    cap = None if row.cap is None or _value(model, row.cap) is None else _number(model, row.cap)
    return Head(output.weight, getattr(output, "bias", None), scale, cap)


def _number(model: Any, key: str) -> float:
    value = _value(model, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f"config.json: {key} is {value!r}, not a number above 0")
    return float(value)


def _value(model: Any, key: str) -> object:
    return getattr(model.config, key, None)
