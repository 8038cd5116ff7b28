"""Find the tensors that a rule freezes; QK-Frozen freezes W_Q and W_K of all softmax layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from amnesia_bench.config.train_schema import Freeze
from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import LayerKind
from amnesia_bench.weights.attention_map import attention_map


def frozen_tensors(
    rule: Freeze | None,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    source: Path | str,
) -> frozenset[str]:
    """Return the names of the tensors that `rule` freezes: weights and their biases.

    Args:
        rule: the roles and layers to freeze; None freezes nothing.
        config: the values of the model's config.json.
        shapes: the shape of each tensor of the model.
        source: the folder or the name of the model, for error messages.

    Raises:
        UserError: the architecture is unknown, a layer of the rule is not a softmax layer, no
            tensor has a role of the rule, or a frozen role shares a tensor with a role that is not
            frozen.
    """
    if rule is None:
        return frozenset()
    attention = attention_map(config, shapes)
    softmax = attention.layers(LayerKind.FULL)
    layers = softmax if rule.layers == "all" else rule.layers
    for layer in layers:
        if layer not in softmax:
            raise UserError(
                f"train.freeze.layers names layer {layer}, which has no full softmax attention",
                hint=f"Softmax layers of {source}: {', '.join(map(str, softmax))}.",
            )
    roles: dict[str, set[str]] = {}
    for tensor in attention.tensors:
        if tensor.layer in layers:
            roles.setdefault(tensor.name, set()).add(tensor.role)
    chosen = {name for name, in_tensor in roles.items() if in_tensor & set(rule.roles)}
    for name in sorted(chosen):
        if not roles[name] <= set(rule.roles):
            raise UserError(
                f"{name} contains roles {', '.join(sorted(roles[name]))} in one tensor, but "
                f"train.freeze.roles only has {', '.join(rule.roles)}",
                hint="Freeze all of these roles, or none.",
            )
    if not chosen:
        raise UserError(
            f"train.freeze.roles: {source} has no {', '.join(rule.roles)} in layers "
            f"{', '.join(map(str, layers))}"
        )
    return frozenset(chosen)
