"""Plan which rows of which tensors a restore replaces, without reading any weights.

`--dry-run` prints the plan. A real restore later compares the bytes that it wrote with the plan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from amnesia_bench.config.schema import Select, TopDrift
from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import AttentionMap, LayerKind, Role, RoleTensor
from amnesia_bench.weights.checkpoint import Checkpoint
from amnesia_bench.weights.names import LAYER_NUMBER, plain_name
from amnesia_bench.weights.numbers import FLOAT_DTYPES


@dataclass(frozen=True, kw_only=True)
class PlannedTensor:
    """The rows of one tensor that will be replaced.

    `layer` is None outside the decoder's layers, and `role` is None if the tensor has no role in a
    softmax layer, or several. `rows` are half-open ranges in ascending order; adjacent ranges are
    merged. `adapter` marks one factor of a low-rank update of W_Q or W_K; the rows of such a tensor
    do not belong to heads.
    """

    layer: int | None
    role: Role | None
    name: str
    rows: tuple[tuple[int, int], ...]
    adapter: bool

    @property
    def num_rows(self) -> int:
        return sum(stop - start for start, stop in self.rows)


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """The tensors of one layer that will be replaced; `layer` is None outside the layers."""

    layer: int | None
    tensors: tuple[PlannedTensor, ...]

    def by_name(self) -> dict[str, list[PlannedTensor]]:
        """Group the planned tensors by name; a fused tensor has one entry per role."""
        tensors: dict[str, list[PlannedTensor]] = {}
        for tensor in self.tensors:
            tensors.setdefault(tensor.name, []).append(tensor)
        return tensors

    def of_role(self, role: Role) -> tuple[PlannedTensor, ...]:
        return tuple(tensor for tensor in self.tensors if tensor.role == role)


def make_plan(
    select: Select, attention: AttentionMap, post: Checkpoint, layers: Collection[int]
) -> tuple[LayerPlan, ...]:
    """Return one plan per layer, by ascending layer index.

    A layer that reuses the attention block of an earlier layer (zamba2) stores no tensors, so it
    has no plan.

    Raises:
        UserError: no selected layer has a tensor with one of the requested roles, a requested KV
            head does not exist, or a list of heads was requested but a low-rank adapter is planned.
    """
    for layer in layers:
        _check_kv_heads(select.kv_heads(layer) or (), attention)
    plans = tuple(
        LayerPlan(
            layer=layer,
            tensors=tuple(
                _planned_tensor(tensor, select.kv_heads(layer), attention, post)
                for role in select.listed_roles
                for tensor in attention.tensors
                if tensor.layer == layer and tensor.role == role
            ),
        )
        for layer in sorted(layers)
    )
    for role in select.listed_roles:
        if not any(plan.of_role(role) for plan in plans):
            raise UserError(
                f"select.roles: no selected layer of this {attention.family} has a tensor of role "
                f"{role.value!r}.",
                hint=f"It has: {', '.join(sorted({t.role.value for t in attention.tensors}))}, in "
                f"layers {_listed(sorted({t.layer for t in attention.tensors}))}.",
            )
    return tuple(plan for plan in plans if plan.tensors)


def plan_whole_checkpoint(attention: AttentionMap, post: Checkpoint) -> tuple[LayerPlan, ...]:
    """Return plans that replace all weights: by ascending layer, then those outside the layers.

    Integer tensors (buffers such as position ids) are not weights, so they are not planned.
    """
    roles: dict[str, set[Role]] = {}
    for role_tensor in attention.tensors:
        roles.setdefault(role_tensor.name, set()).add(role_tensor.role)
    layers: dict[int | None, list[PlannedTensor]] = {}
    for name, (_, entry) in post.tensors.items():
        if entry.dtype in FLOAT_DTYPES and entry.num_bytes:
            layer = _layer_of(plain_name(name), attention.root)
            own = roles.get(name, set())
            tensor = PlannedTensor(
                layer=layer,
                role=min(own) if len(own) == 1 else None,
                name=name,
                rows=((0, entry.num_rows),),
                adapter=False,
            )
            layers.setdefault(layer, []).append(tensor)
    ordered = sorted(layers, key=lambda layer: (layer is None, layer))
    return tuple(LayerPlan(layer=layer, tensors=tuple(layers[layer])) for layer in ordered)


def divided_by_role(
    plans: Iterable[LayerPlan], attention: AttentionMap, post: Checkpoint
) -> tuple[LayerPlan, ...]:
    """Divide the tensors of a whole checkpoint that several roles share into the rows of each role.

    The rows of such a tensor that belong to no known role stay together, without a role.
    """
    return tuple(
        LayerPlan(
            layer=plan.layer,
            tensors=tuple(
                part for tensor in plan.tensors for part in _divided(tensor, attention, post)
            ),
        )
        for plan in plans
    )


def _divided(
    tensor: PlannedTensor, attention: AttentionMap, post: Checkpoint
) -> Iterator[PlannedTensor]:
    of_roles = [each for each in attention.tensors if each.name == tensor.name]
    if len(of_roles) < 2:
        yield tensor
        return
    parts = [_planned_tensor(each, None, attention, post) for each in of_roles]
    yield from parts
    others, start = [], 0
    for first, stop in _merged(rows for part in parts for rows in part.rows):
        others.append((start, first))
        start = stop
    others.append((start, tensor.rows[0][1]))
    if rows := tuple((first, stop) for first, stop in others if first < stop):
        yield replace(tensor, rows=rows)


def _layer_of(name: str, root: str) -> int | None:
    number = LAYER_NUMBER.search(name)
    return int(number.group(1)) if number and name.startswith(root) else None


def candidate_layers(select: Select, attention: AttentionMap) -> tuple[int, ...]:
    """Return the softmax layers that `select` allows to be restored, in ascending order.

    Eligible layers have full attention or, with `include_sliding`, a sliding window. If
    `select.layers` or `select.heads` lists layers, only these are returned. With `top_drift`, all
    eligible layers are returned, and the caller keeps those with the largest drift.

    Raises:
        UserError: the model has no eligible softmax layer, `select` lists a layer that is not
            eligible, or `top_drift` exceeds the number of eligible layers.
    """
    kinds = [LayerKind.FULL, LayerKind.SLIDING] if select.include_sliding else [LayerKind.FULL]
    layers = attention.layers(*kinds)
    sliding = attention.layers(LayerKind.SLIDING)
    sliding_hint = "" if select.include_sliding or not sliding else (
        f" Layers {_listed(sliding)} attend over a sliding window: select.include_sliding=true."
    )  # fmt: skip
    if not layers:
        raise UserError(
            f"This {attention.family} has no layer with full softmax attention: nothing to "
            f"restore.{sliding_hint}"
        )
    listed, where = select.layers, "select.layers:"
    if select.heads_by_layer:
        listed, where = tuple(entry.layer for entry in select.heads_by_layer), "select.heads: layer"
    if isinstance(listed, str):
        return layers
    if isinstance(listed, TopDrift):
        if listed.top_drift > len(layers):
            raise UserError(
                f"select.layers: top_drift is {listed.top_drift}, but the model has only "
                f"{len(layers)} softmax layers: {_listed(layers)}."
            )
        return layers
    for layer in listed:
        if layer not in layers:
            raise UserError(
                f"{where} {layer} is not a softmax layer of this {attention.family}; "
                f"its softmax layers are {_listed(layers)}.{sliding_hint}"
            )
    return tuple(sorted(set(listed)))


def _check_kv_heads(kv_heads: Iterable[int], attention: AttentionMap) -> None:
    for kv_head in kv_heads:
        if kv_head >= attention.num_kv_heads:
            raise UserError(
                f"select.heads: {kv_head} is not a KV head of this {attention.family}; "
                f"it has {attention.num_kv_heads} (0..{attention.num_kv_heads - 1}). A query "
                "head is restored together with its KV head."
            )


def _planned_tensor(
    tensor: RoleTensor,
    kv_heads: tuple[int, ...] | None,
    attention: AttentionMap,
    post: Checkpoint,
) -> PlannedTensor:
    adapter = tensor.role in (Role.Q, Role.K) and tensor.rows is None
    if adapter and kv_heads is not None:
        raise UserError(
            f"select.heads: {tensor.name!r} is an adapter that all heads share, so it can only be "
            "restored for all heads.",
            hint="restore.select.heads=all",
        )
    if tensor.rows is None:
        ranges = [(0, post.tensors[tensor.name][1].num_rows)]
    else:
        heads_per_kv_head = tensor.rows.num_heads // attention.num_kv_heads
        heads = range(tensor.rows.num_heads)
        if kv_heads is not None:
            heads_of = (range(g * heads_per_kv_head, (g + 1) * heads_per_kv_head) for g in kv_heads)
            ranges = [_bounds(tensor.rows.rows(h)) for heads in heads_of for h in heads]
        else:
            ranges = [_bounds(tensor.rows.rows(h)) for h in heads]
    return PlannedTensor(
        layer=tensor.layer,
        role=tensor.role,
        name=tensor.name,
        rows=_merged(ranges),
        adapter=adapter,
    )


def _bounds(rows: range) -> tuple[int, int]:
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
