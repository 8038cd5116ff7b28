"""A model to measure: loaded from a checkpoint, its softmax layers known and reached by the probe.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import amnesia_bench.modeling  # noqa: F401 - registers HypeNet with transformers' auto classes
from amnesia_bench.analysis.probe import probing
from amnesia_bench.analysis.row_blocks import RowBlock
from amnesia_bench.errors import UserError
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.roles import LayerKind
from amnesia_bench.weights.attention_map import attention_map
from amnesia_bench.weights.checkpoint import Checkpoint, open_checkpoint
from amnesia_bench.weights.identity import parent_by_contents

_TRIED_TOKENS = 4


@dataclass(frozen=True, eq=False)
class MeasuredModel:
    """A causal LM in evaluation mode, and the softmax layers that the probe reaches in it.

    `name` is what messages call it. `full_layers` are the softmax layers without a window.
    `head_only` is whether its logits are those of the head alone (no scale or cap behind it).
    """

    module: Any
    name: str
    softmax_layers: tuple[int, ...]
    full_layers: tuple[int, ...]
    num_heads: int
    head_only: bool

    @property
    def device(self) -> torch.device:
        """Where tokens go in."""
        device: torch.device = self.module.get_input_embeddings().weight.device
        return device

    @property
    def settings(self) -> dict[str, str]:
        """What a measurement depends on besides the checkpoint."""
        return {"dtype": str(self.module.dtype).removeprefix("torch."), "device": self.device.type}


def open_model(folder: Path, role: str) -> tuple[MeasuredModel, Parent]:
    """Load a checkpoint for measuring; on a GPU where there is one, in float32 on a CPU.

    No code in the folder is run.

    Returns:
        The model, and its entry in manifests as `role`.

    Raises:
        UserError: no causal LM, an architecture that is not known, no softmax layer, or attention
            that the probe does not reach.
    """
    checkpoint = open_checkpoint(folder)
    layers = _softmax_layers(checkpoint)
    parent = parent_by_contents(role, checkpoint)
    on_gpu = torch.cuda.is_available()
    auto: Any = AutoModelForCausalLM
    try:
        module, info = auto.from_pretrained(
            folder,
            dtype="auto" if on_gpu else torch.float32,
            local_files_only=True,
            trust_remote_code=False,  # without it transformers asks on the terminal
            output_loading_info=True,
        )
    except UserError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{folder}: no causal LM could be loaded ({str(error).partition(chr(10))[0]})",
            hint="The folder must hold config.json and safetensors of a model that the installed "
            "transformers knows.",
        ) from error
    if missing := info["missing_keys"]:
        raise UserError(f"{folder}: missing tensor {min(missing)}")
    checkpoint.held.check()
    return measured(module.to("cuda" if on_gpu else "cpu"), str(folder), layers), parent


def _softmax_layers(checkpoint: Checkpoint) -> dict[int, LayerKind]:
    found = attention_map(checkpoint.config, checkpoint.shapes)
    return {
        layer: found.layer_kinds[layer] for layer in found.layers(LayerKind.FULL, LayerKind.SLIDING)
    }


def measured(module: Any, name: str, layers: dict[int, LayerKind]) -> MeasuredModel:
    """Try the probe in a model, with a few tokens.

    Args:
        module: a causal LM.
        name: what messages call it.
        layers: its softmax layers and their kinds.

    Raises:
        UserError: there is no such layer, or the probe does not reach exactly these.
    """
    family = module.config.model_type
    if not layers:
        raise UserError(
            f"{name}: {family} has no softmax layer, whose attention could be measured",
            hint="Give a model with at least one layer of softmax attention.",
        )
    module.eval()
    heads: dict[int, int] = {}

    def count(block: RowBlock) -> None:
        last = block.first_head + block.values.shape[1]
        heads[block.layer] = max(heads.get(block.layer, 0), last)

    ids = torch.arange(_TRIED_TOKENS, device=module.get_input_embeddings().weight.device)[None]
    with torch.no_grad(), probing(module, weights=count):
        logits = module(input_ids=ids, use_cache=False).logits
        output = module.base_model(input_ids=ids, use_cache=False)
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None:
            raise UserError(
                f"{name}: {family} has no decoder below its head that gives hidden states",
                hint="Such a model cannot be measured.",
            )
        head_only = torch.allclose(logits, module.get_output_embeddings()(hidden))
    if sorted(heads) != sorted(layers):
        raise UserError(
            f"{name}: the attention of {family} does not go through transformers' attention "
            f"interface (seen in layers {sorted(heads) or 'none'}, softmax attention is in "
            f"{sorted(layers)})",
            hint="Such a model cannot be measured.",
        )
    full = tuple(layer for layer in sorted(layers) if layers[layer] is LayerKind.FULL)
    return MeasuredModel(module, name, tuple(sorted(layers)), full, heads[min(heads)], head_only)


def logits_of(model: MeasuredModel, hidden: Tensor) -> Tensor:
    """Return the logits [..., V] of hidden states, for a model whose head is all there is."""
    logits: Tensor = model.module.get_output_embeddings()(hidden)
    return logits
