"""Find the tensors that a rule freezes; QK-Frozen freezes W_Q and W_K of all softmax layers."""

from __future__ import annotations

from amnesia_bench.config.train_schema import Freeze
from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import LayerKind
from amnesia_bench.weights.attention_map import attention_map
from amnesia_bench.weights.checkpoint import Checkpoint


def frozen_tensors(rule: Freeze | None, checkpoint: Checkpoint) -> frozenset[str]:
    """Return the names of the tensors that `rule` freezes: weights and their biases.

    Raises:
        UserError: the architecture is unknown, a layer of the rule is not a softmax layer, no
            tensor has a role of the rule, or a frozen role shares a tensor with a role that is not
            frozen.
    """
    if rule is None:
        return frozenset()
    attention = attention_map(checkpoint.config, checkpoint.shapes)
    softmax = attention.layers(LayerKind.FULL)
    layers = softmax if rule.layers == "all" else rule.layers
    for layer in layers:
        if layer not in softmax:
            raise UserError(
                f"train.freeze.layers names layer {layer}, which has no full softmax attention",
                hint=f"Softmax layers of {checkpoint.folder}: {', '.join(map(str, softmax))}.",
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
            f"train.freeze.roles: {checkpoint.folder} has no {', '.join(rule.roles)} in layers "
            f"{', '.join(map(str, layers))}"
        )
    return frozenset(chosen)
