"""How each family that can be trained turns hidden states into logits and tells documents apart.

A row here is a promise: tests compare our loss and gradients with those of the model's own forward
pass, and documents packed in a row with documents alone. `loss_check` compares once more when a run
starts, for the model at hand.

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

# How documents in one row are kept apart: by positions that begin again and attention that works
# document by document; by their boundaries; or not at all, one document a row.
Documents = Literal["positions", "boundaries", "alone"]


@dataclass(frozen=True, kw_only=True)
class Trainable:
    """What training has to know of a family.

    `times`, `over` and `cap` are keys of config.json: logits are multiplied by the first, divided
    by the second, and bounded by the third, cap * tanh(logits / cap). Null there means no cap.
    """

    documents: Documents
    times: str | None = None
    over: str | None = None
    cap: str | None = None


def _rows(documents: Documents, *kinds: str, **keys: str) -> dict[str, Trainable]:
    return dict.fromkeys(kinds, Trainable(documents=documents, **keys))


TRAINABLE: Mapping[str, Trainable] = {
    **_rows("boundaries", "hypenet"),
    **_rows("positions", "llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "gemma", "olmo"),
    **_rows("positions", "olmo2", "olmo3", "smollm3", "exaone4", "glm", "glm4", "seed_oss"),
    **_rows("positions", "ernie4_5", "hunyuan_v1_dense", "starcoder2", "helium", "arcee"),
    **_rows("positions", "ministral", "ministral3"),
    **_rows("positions", "gemma3_text", "nanochat", cap="final_logit_softcapping"),
    **_rows("positions", "cohere", "cohere2", times="logit_scale"),
    **_rows("positions", "granite", over="logits_scaling"),
    **_rows("positions", "hyperclovax", times="logits_scaling"),
    # Its attention caps logits too, which no fused kernel does.
    **_rows("alone", "gemma2", cap="final_logit_softcapping"),
    # The decoder layer of its own code drops what would tell documents apart.
    **_rows("alone", "jet_nemotron"),
    # States that run on over the boundaries of documents.
    **_rows("alone", "qwen3_5_text", "bamba", "lfm2"),
    **_rows("alone", "falcon_h1", times="lm_head_multiplier"),
    **_rows("alone", "granitemoehybrid", over="logits_scaling"),
    **_rows("alone", "recurrent_gemma", cap="logits_soft_cap"),
}


# What the code of a checkpoint is taken to do until `loss_check` has seen it.
_UNKNOWN = Trainable(documents="alone")


def trainable(model_type: object) -> Trainable:
    """Return the row of a family."""
    known = isinstance(model_type, str) and model_type in TRAINABLE
    return TRAINABLE[str(model_type)] if known else _UNKNOWN


@dataclass(frozen=True)
class Head:
    """From hidden states h to logits: cap * tanh(scale * (W h + b) / cap).

    Attributes:
        weight: W [V, M].
        bias: b [V].
        scale: a factor on the logits.
        cap: what they are bounded by; None for no bound.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states [N, M]: [N, V] in float32, or float64 for float64."""
        product = hidden @ self.weight.mT
        if self.bias is not None:
            product += self.bias
        logits = product.to(torch.float64 if hidden.dtype == torch.float64 else torch.float32)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.cap is None else (logits / self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """Return the derivative of `logits` by W h + b."""
        return self.scale if self.cap is None else (1 - (logits / self.cap).square()) * self.scale


def head_of(model: Any) -> Head:
    """Return the head of a causal LM, its weights as they are now.

    Raises:
        UserError: it has no head of one matrix, or its config no number where one is needed.
    """
    output, row = model.get_output_embeddings(), trainable(model.config.model_type)
    if getattr(output, "weight", None) is None:
        raise UserError(f"a {model.config.model_type} has no head that is one matrix")
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
