"""The tensors one softmax layer must own, and the comparison with what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import HeadRows, LayerKind, Role, RoleTensor
from amnesia_bench.weights.config_keys import Config, integer, lookup
from amnesia_bench.weights.family import BUFFERS, Family, Module
from amnesia_bench.weights.row_layouts import Heads

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
ROLE_ORDER = {role: order for order, role in enumerate(Role)}
KEY_VALUE = {Role.K, Role.V, Role.K_NORM}


@dataclass(frozen=True, kw_only=True)
class ExpectedTensor:
    """A tensor of a softmax layer: its name, its shape, and whose rows it holds."""

    name: str
    shape: Shape
    shares: tuple[tuple[Role, HeadRows | None], ...]

    def has_role(self, roles: Collection[Role]) -> bool:
        """Return whether some rows play one of these roles."""
        return any(role in roles for role, _ in self.shares)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Makes the expected tensors of each attention block of one checkpoint."""

    family: Family
    config: Config
    heads: Heads
    kinds: tuple[LayerKind, ...]
    root: str

    def prefix(self, layer: int) -> str:
        """Return what the names of a layer's attention tensors start with."""
        return self.root + self.family.block.format(layer=layer)

    def tensors(self, layer: int) -> Iterator[ExpectedTensor]:
        """Yield the tensors of a layer's own block."""
        heads = self._heads_of(layer)
        for module in self._modules(layer, used=True):
            shares = tuple((role, layout(heads)) for role, layout in module.shares)
            shape = module.shape(heads)
            for name, size in zip(module.tensors(self.config), (shape, shape[:1]), strict=False):
                yield ExpectedTensor(name=self.prefix(layer) + name, shape=size, shares=shares)

    def unread(self, layer: int) -> set[str]:
        """Return the names of tensors that a checkpoint may hold in this block and nothing reads.

        They are buffers of old checkpoints, and W_K and W_V of layers that read another's.
        """
        idle = [m.tensors(self.config) for m in self._modules(layer, used=False)]
        names = (*BUFFERS, *(name for tensors in idle for name in tensors))
        return {self.prefix(layer) + name for name in names}

    def _heads_of(self, layer: int) -> Heads:
        dim = self.family.head_dims(self.config, self.kinds).get(layer, self.heads.dim)
        return replace(self.heads, dim=dim)

    def _modules(self, layer: int, *, used: bool) -> Iterator[Module]:
        """Yield the modules that the layer computes with, or those that it leaves alone."""
        key = self.family.kv_shared
        count = lookup(self.config, key) if key is not None else None
        shares = isinstance(count, int) and layer >= len(self.kinds) - count
        for module in self.family.modules:
            idle = shares and {role for role, _ in module.shares} <= KEY_VALUE
            if module.exists(self.config) and idle is not used:
                yield module

    def adapters(self, layer: int, uses: range) -> Iterator[ExpectedTensor]:
        """Yield the low-rank adapters of a shared block; `uses` are its turns among all layers.

        They have no rows per head: B_i A_i mixes all heads through one rank, so an adapter moves
        whole or not at all.
        """
        shared = self.family.shared
        if shared is None or not shared.adapters_if(self.config):
            return
        rank = integer(self.config, shared.adapter_rank_key)
        inner = self.heads.inner
        for role, module in shared.adapters:
            for use in uses:
                for half, shape in enumerate(((rank, inner), (inner, rank))):
                    yield ExpectedTensor(
                        name=f"{self.prefix(layer)}{module}.{use}.{half}.weight",
                        shape=shape,
                        shares=((role, None),),
                    )


def check_attention_block(
    expected: list[ExpectedTensor], found: Shapes, where: str, roles: Collection[Role]
) -> None:
    """Compare the tensors below one attention block with the expected ones.

    Args:
        expected: what the family's block holds.
        found: every tensor below the block, buffers left out.
        where: how to call the block.
        roles: the roles whose tensors must be there.

    Raises:
        UserError: naming the first tensor that is missing, of another shape, or unknown.
    """
    _refuse_unfinished(found, where)
    unknown = sorted(found.keys() - {tensor.name for tensor in expected})
    for tensor in expected:
        if tensor.name not in found and not tensor.has_role(roles):
            continue
        if tensor.name not in found:
            instead = f"; there are {', '.join(map(repr, unknown))}" if unknown else ""
            raise UserError(
                f"{where}: {tensor.name} is missing (expected shape {list(tensor.shape)}){instead}",
                hint="save the checkpoint with transformers' save_pretrained, which neither splits "
                "nor joins projections in another way and merges adapters"
                if unknown
                else "is the checkpoint complete, and config.json its own?",
            )
        if found[tensor.name] != tensor.shape:
            raise UserError(
                f"{where}: {tensor.name} should have shape {list(tensor.shape)}, "
                f"found {list(found[tensor.name])}",
                hint="head counts, head_dim and hidden size come from config.json",
            )
    if unknown:
        raise UserError(
            f"{where}: unexpected tensor {unknown[0]!r} of shape {list(found[unknown[0]])}",
            hint="merge adapters first; quantised weights cannot be restored",
        )


def _refuse_unfinished(found: Shapes, where: str) -> None:
    """Name what a run saved before its weights were whole: an adapter apart, or nothing at all."""
    for name, shape in found.items():
        if ".lora_" in name or ".base_layer." in name:
            raise UserError(
                f"{where}: {name} is part of an adapter that is not merged into the weights",
                hint="Merge it first: merge_and_unload() of peft, then save_pretrained",
            )
        if 0 in shape:
            raise UserError(
                f"{where}: {name} is empty",
                hint="DeepSpeed's ZeRO-3 saves empty tensors unless it gathers them "
                "(stage3_gather_16bit_weights_on_model_save); its shards still hold them: "
                "python zero_to_fp32.py FOLDER OUT --safe_serialization",
            )


def fits(expected: list[ExpectedTensor], found: Shapes) -> bool:
    """Return whether a block holds exactly the expected tensors."""
    return {tensor.name: tensor.shape for tensor in expected} == found


def role_tensors(layer: int, expected: list[ExpectedTensor]) -> list[RoleTensor]:
    """Return one record per tensor and role, in the order of the roles."""
    records = [
        RoleTensor(layer=layer, role=role, name=tensor.name, rows=rows)
        for tensor in expected
        for role, rows in tensor.shares
    ]
    return sorted(records, key=lambda record: ROLE_ORDER[record.role])
