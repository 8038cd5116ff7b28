"""Which parameters a freezing rule names: QK-Frozen is W_Q and W_K of every softmax layer."""

from __future__ import annotations

from amnesia_bench.config.train_schema import Freeze
from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import LayerKind
from amnesia_bench.weights.attention_map import attention_map
from amnesia_bench.weights.checkpoint import Checkpoint


def frozen_tensors(rule: Freeze | None, checkpoint: Checkpoint) -> frozenset[str]:
    """Return the names of the tensors that must not change, biases with their weights.

    Raises:
        UserError: the architecture is unknown, a layer is no softmax layer, or a role shares a
            tensor with another role.
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
    chosen = {name for name, found in roles.items() if found & set(rule.roles)}
    for name in sorted(chosen):
        if not roles[name] <= set(rule.roles):
            raise UserError(
                f"{name} holds roles {', '.join(sorted(roles[name]))} in one tensor, and only "
                f"{', '.join(rule.roles)} are to be frozen",
                hint="Freeze all of these roles, or none.",
            )
    if not chosen:
        raise UserError(
            f"train.freeze.roles: {checkpoint.folder} has no {', '.join(rule.roles)} in layers "
            f"{', '.join(map(str, layers))}"
        )
    return frozenset(chosen)
