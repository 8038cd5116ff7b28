"""Mask attention heads of a model in memory, to test what depends on them.

Shapes: H query heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import Role
from amnesia_bench.weights.attention_map import attention_map
from amnesia_bench.weights.checkpoint import Checkpoint


@contextmanager
def without_heads(
    module: Any, checkpoint: Checkpoint, heads: Iterable[tuple[int, int]]
) -> Iterator[None]:
    """Inside the `with` block, set the outputs of attention heads to zero.

    The output projection of their layer then receives zeros from these heads, as if its columns
    for them were zero. The weights of the model are not changed.

    Args:
        module: the transformers model that was loaded from `checkpoint`.
        checkpoint: its folder.
        heads: the query heads to mask, as pairs of layer and head.

    Raises:
        UserError: the model has no such softmax head, or no output projection where its
            checkpoint has one.
    """
    attention = attention_map(checkpoint.config, checkpoint.shapes)
    projections = {
        tensor.layer: tensor.name.removesuffix(".weight")
        for tensor in attention.tensors
        if tensor.role is Role.O and tensor.name.endswith(".weight")
    }
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        if layer not in projections or not 0 <= head < attention.num_query_heads:
            raise UserError(
                f"{checkpoint.folder}: has no softmax head {layer}.{head}; it has heads 0 to "
                f"{attention.num_query_heads - 1} in layers {', '.join(map(str, projections))}"
            )
        by_layer.setdefault(layer, []).append(head)
    with ExitStack() as hooks:
        for layer, masked in by_layer.items():
            projection = _submodule(module, projections[layer])
            hook = projection.register_forward_pre_hook(_zeroing(masked, attention.num_query_heads))
            hooks.callback(hook.remove)
        yield


def _submodule(module: Any, name: str) -> nn.Module:
    try:
        projection: nn.Module = module.get_submodule(name)
    except AttributeError as error:
        raise UserError(
            f"{type(module).__name__} has no module {name}: its module names differ from the "
            "tensor names of its checkpoint"
        ) from error
    return projection


def _zeroing(masked: list[int], num_heads: int) -> Any:
    def zero(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        output = inputs[0]
        by_head = output.reshape(*output.shape[:-1], num_heads, -1).clone()  # [..., H, D]
        by_head[..., masked, :] = 0
        return (by_head.view(output.shape), *inputs[1:])

    return zero
