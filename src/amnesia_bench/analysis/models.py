"""Load a checkpoint for measurements, and check that the probe reaches its softmax layers.

Shapes: B batch, T tokens, V vocabulary size.
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
from amnesia_bench.modeling.numerics import use_exact_float32
from amnesia_bench.modeling.torch_forms import pytorch_forms_on_cpu
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.roles import LayerKind
from amnesia_bench.weights.attention_map import attention_map
from amnesia_bench.weights.checkpoint import Checkpoint, open_checkpoint
from amnesia_bench.weights.identity import parent_by_contents

_PROBE_TOKENS = 4


@dataclass(frozen=True, eq=False)
class MeasuredModel:
    """A causal LM in evaluation mode, and the softmax layers that the probe reaches.

    `name` is the model's name in messages. `full_layers` are the softmax layers without a window.
    `head_only` is true if the logits are the output of the LM head, with no scale or cap after it.
    """

    module: Any
    name: str
    softmax_layers: tuple[int, ...]
    full_layers: tuple[int, ...]
    num_heads: int
    head_only: bool

    @property
    def device(self) -> torch.device:
        """The device of the input embeddings."""
        device: torch.device = self.module.get_input_embeddings().weight.device
        return device

    @property
    def settings(self) -> dict[str, str]:
        """The dtype and device of the model, for the records of measurements."""
        return {"dtype": str(self.module.dtype).removeprefix("torch."), "device": self.device.type}


def open_model(folder: Path, role: str) -> tuple[MeasuredModel, Parent]:
    """Load a checkpoint for measurements, without running any code in its folder.

    The model is loaded on a GPU if one is available, and otherwise in float32 on the CPU.

    Returns:
        The model, and the checkpoint as a parent with the role `role`.

    Raises:
        UserError: the folder contains no causal LM, its architecture is unknown, it has no softmax
            layer, or the probe does not reach its attention.
    """
    checkpoint = open_checkpoint(folder)
    layers = _softmax_layers(checkpoint)
    parent = parent_by_contents(role, checkpoint)
    on_gpu = torch.cuda.is_available()
    use_exact_float32()
    auto: Any = AutoModelForCausalLM
    try:
        with pytorch_forms_on_cpu():
            module, info = auto.from_pretrained(
                folder,
                dtype="auto" if on_gpu else torch.float32,
                local_files_only=True,
                trust_remote_code=False,  # if unset, transformers asks on the terminal
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
        raise UserError(
            f"{folder}: missing tensor {min(missing)}",
            hint="Copy or download the folder again: its safetensors files are incomplete.",
        )
    checkpoint.held.check()
    return measured(module.to("cuda" if on_gpu else "cpu"), str(folder), layers), parent


def _softmax_layers(checkpoint: Checkpoint) -> dict[int, LayerKind]:
    attention = attention_map(checkpoint.config, checkpoint.shapes)
    return {
        layer: attention.layer_kinds[layer]
        for layer in attention.layers(LayerKind.FULL, LayerKind.SLIDING)
    }


def measured(module: Any, name: str, layers: dict[int, LayerKind]) -> MeasuredModel:
    """Check with a short forward pass that the probe reaches a model's softmax layers.

    Return the model.

    Args:
        module: a causal LM.
        name: the model's name in messages.
        layers: maps the index of each softmax layer to its kind.

    Raises:
        UserError: the model has no softmax layer or returns no hidden states, or the probe does not
            reach exactly `layers`.
    """
    family = module.config.model_type
    if not layers:
        raise UserError(
            f"{name}: {family} has no softmax layer to measure",
            hint="Use a model with at least one layer of softmax attention.",
        )
    module.eval()
    heads: dict[int, int] = {}

    def count(block: RowBlock) -> None:
        last = block.first_head + block.values.shape[1]
        heads[block.layer] = max(heads.get(block.layer, 0), last)

    ids = torch.arange(_PROBE_TOKENS, device=module.get_input_embeddings().weight.device)[None]
    with torch.no_grad(), probing(module, weights=count):
        logits = module(input_ids=ids, use_cache=False).logits
        output = module.base_model(input_ids=ids, use_cache=False)
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is None:
            raise UserError(
                f"{name}: {family} has no decoder that returns hidden states",
                hint="Such a model cannot be measured.",
            )
        head_only = torch.allclose(logits, module.get_output_embeddings()(hidden))
    if sorted(heads) != sorted(layers):
        raise UserError(
            f"{name}: the attention of {family} does not go through transformers' attention "
            f"interface (observed in layers {sorted(heads) or 'none'}, softmax attention is in "
            f"{sorted(layers)})",
            hint="Such a model cannot be measured.",
        )
    full = tuple(layer for layer in sorted(layers) if layers[layer] is LayerKind.FULL)
    return MeasuredModel(module, name, tuple(sorted(layers)), full, heads[min(heads)], head_only)


def logits_of(model: MeasuredModel, hidden: Tensor) -> Tensor:
    """Return the logits [..., V] for final hidden states; the model must be `head_only`."""
    logits: Tensor = model.module.get_output_embeddings()(hidden)
    return logits
