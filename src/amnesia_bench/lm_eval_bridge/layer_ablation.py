"""A softmax layer taken out of a model in memory: its attention adds nothing.

The paper's formula for its ablated model (Appendix M) is lost in the text we have. Our reading:
the output projection of the layer gives zeros, so that the residual stream passes the attention
block unchanged, and the layer's MLP stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import LayerKind, Role
from amnesia_bench.weights.attention_map import attention_map
from amnesia_bench.weights.checkpoint import Checkpoint

ABLATION = "attention output zero (our reading of Appendix M)"


def output_projections(checkpoint: Checkpoint) -> Mapping[int, str]:
    """Return the module of the output projection of each softmax layer without a window.

    Raises:
        UserError: an unknown architecture, or one without such layers.
    """
    attention = attention_map(checkpoint.config, checkpoint.shapes)
    layers = attention.layers(LayerKind.FULL)
    found = {
        tensor.layer: tensor.name.removesuffix(".weight")
        for tensor in attention.tensors
        if tensor.role is Role.O and tensor.layer in layers and tensor.name.endswith(".weight")
    }
    if not layers or set(found) != set(layers):
        raise UserError(
            f"{checkpoint.folder}: {attention.family} has no softmax layers over the whole "
            "context with an output projection of their own"
        )
    return found


@contextmanager
def without_attention(model: Any, projection: str) -> Iterator[None]:
    """Let one layer's attention add nothing to the residual stream inside the block.

    Args:
        model: a model of transformers; nothing of its weights is changed.
        projection: the name of the layer's output projection in it.

    Raises:
        UserError: the model has no module of this name.
    """
    try:
        module = model.get_submodule(projection)
    except AttributeError as error:
        raise UserError(
            f"{type(model).__name__} has no module {projection}: its names differ from those of "
            "its checkpoint"
        ) from error
    hook = module.register_forward_hook(
        lambda _module, _inputs, output: output.new_zeros(output.shape)
    )
    try:
        yield
    finally:
        hook.remove()
