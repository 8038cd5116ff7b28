"""Which tensors, and which of their rows, a restore will replace. Reads no weights.

The plan is what `--dry-run` prints and what the written bytes are later compared with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from amnesia_bench.config.schema import Select, TopDrift
from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import AttentionMap, LayerKind, Role, RoleTensor
from amnesia_bench.weights.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """The rows of one tensor that will be replaced: half-open ranges, ascending, merged.

    `adapter`: one half of a low-rank addition to W_Q or W_K, without rows per head.
    """

    layer: int
    role: Role
    name: str
    rows: tuple[tuple[int, int], ...]
    adapter: bool

    @property
    def num_rows(self) -> int:
        return sum(stop - start for start, stop in self.rows)


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """One softmax layer: what will be replaced in it."""

    layer: int
    tensors: tuple[PlannedTensor, ...]

    def by_name(self) -> dict[str, list[PlannedTensor]]:
        """Return what is planned per tensor: a fused one plays several roles."""
        tensors: dict[str, list[PlannedTensor]] = {}
        for tensor in self.tensors:
            tensors.setdefault(tensor.name, []).append(tensor)
        return tensors

    def of_role(self, role: Role) -> tuple[PlannedTensor, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.role == role)


def make_plan(
    select: Select, attention: AttentionMap, post: Checkpoint, layers: Iterable[int]
) -> tuple[LayerPlan, ...]:
    """Return the plan for these layers, in ascending order.

    Layers that share the block of an earlier one (zamba2) own no tensors and have no plan.

    Raises:
        UserError: a role that no selected layer has, or heads the model does not have.
    """
    groups = _groups(select, attention)
    plans = tuple(
        LayerPlan(
            layer=layer,
            tensors=tuple(
                _planned(tensor, groups, attention, post)
                for role in select.roles
                for tensor in attention.tensors
                if tensor.layer == layer and tensor.role == role
            ),
        )
        for layer in sorted(layers)
    )
    for role in select.roles:
        if not any(plan.of_role(role) for plan in plans):
            raise UserError(
                f"select.roles: no selected layer of this {attention.family} has a tensor of role "
                f"{role.value!r}.",
                hint=f"It has: {', '.join(sorted({t.role.value for t in attention.tensors}))}, in "
                f"layers {_listed(sorted({t.layer for t in attention.tensors}))}.",
            )
    return tuple(plan for plan in plans if plan.tensors)


def candidate_layers(select: Select, attention: AttentionMap) -> tuple[int, ...]:
    """Return the layers that may be restored; a list in `select.layers` is checked against them.

    Raises:
        UserError: no softmax layer, or a listed layer that is not one.
    """
    kinds = [LayerKind.FULL, LayerKind.SLIDING] if select.include_sliding else [LayerKind.FULL]
    layers = attention.layers(*kinds)
    sliding = attention.layers(LayerKind.SLIDING)
    advice = "" if select.include_sliding or not sliding else (
        f" Layers {_listed(sliding)} attend over a sliding window: select.include_sliding=true."
    )  # fmt: skip
    if not layers:
        raise UserError(
            f"This {attention.family} has no layer with full softmax attention: nothing to "
            f"restore.{advice}"
        )
    if isinstance(select.layers, str):
        return layers
    if isinstance(select.layers, TopDrift):
        if select.layers.top_drift > len(layers):
            raise UserError(
                f"select.layers: top {select.layers.top_drift} asked for, but there are only "
                f"{len(layers)} softmax layers: {_listed(layers)}."
            )
        return layers
    for layer in select.layers:
        if layer not in layers:
            raise UserError(
                f"select.layers: {layer} is not a softmax layer of this {attention.family}; "
                f"those are {_listed(layers)}.{advice}"
            )
    return tuple(sorted(set(select.layers)))


def _groups(select: Select, attention: AttentionMap) -> tuple[int, ...] | None:
    if isinstance(select.heads, str):
        return None
    for group in select.heads:
        if not 0 <= group < attention.num_kv_heads:
            raise UserError(
                f"select.heads: {group} is not a KV head of this {attention.family}; "
                f"it has {attention.num_kv_heads} (0..{attention.num_kv_heads - 1}). A query "
                "head is restored with the KV head that it reads."
            )
    return tuple(sorted(set(select.heads)))


def _planned(
    tensor: RoleTensor,
    groups: tuple[int, ...] | None,
    attention: AttentionMap,
    post: Checkpoint,
) -> PlannedTensor:
    adapter = tensor.role in (Role.Q, Role.K) and tensor.rows is None
    if adapter and groups is not None:
        raise UserError(
            f"select.heads: {tensor.name!r} is an adapter that all heads share; only all of them "
            "can be restored.",
            hint="restore.select.heads=all",
        )
    if tensor.rows is None:
        ranges = [(0, post.tensors[tensor.name][1].num_rows)]
    else:
        per_group = tensor.rows.num_heads // attention.num_kv_heads
        heads = range(tensor.rows.num_heads)
        if groups is not None:
            heads_of = (range(g * per_group, (g + 1) * per_group) for g in groups)
            ranges = [_ends(tensor.rows.rows(h)) for heads in heads_of for h in heads]
        else:
            ranges = [_ends(tensor.rows.rows(h)) for h in heads]
    return PlannedTensor(
        layer=tensor.layer,
        role=tensor.role,
        name=tensor.name,
        rows=_merged(ranges),
        adapter=adapter,
    )


def _ends(rows: range) -> tuple[int, int]:
    return rows.start, rows.stop


def _merged(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def _listed(layers: Iterable[int]) -> str:
    return ", ".join(str(layer) for layer in layers)
