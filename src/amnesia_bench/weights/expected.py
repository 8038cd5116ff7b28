"""List the tensors that a softmax layer must have, and compare a checkpoint with that list."""

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
    """A tensor that a softmax layer should have.

    `shares` lists the roles of the tensor and the rows that each role has in it.
    """

    name: str
    shape: Shape
    shares: tuple[tuple[Role, HeadRows | None], ...]

    def has_role(self, roles: Collection[Role]) -> bool:
        """Return whether the tensor has one of these roles, in all or some of its rows."""
        return any(role in roles for role, _ in self.shares)


@dataclass(frozen=True, kw_only=True)
class Block:
    """The attention blocks of a checkpoint, and the tensors that are expected in each."""

    family: Family
    config: Config
    heads: Heads
    kinds: tuple[LayerKind, ...]
    root: str

    def prefix(self, layer: int) -> str:
        """Return the name prefix of a layer's attention tensors."""
        return self.root + self.family.block.format(layer=layer)

    def tensors(self, layer: int) -> Iterator[ExpectedTensor]:
        """Yield the expected tensors of a layer's own block, without adapters."""
        heads = self._heads_of(layer)
        for module in self._modules(layer, used=True):
            shares = tuple((role, layout(heads)) for role, layout in module.shares)
            shape = module.shape(heads)
            for name, size in zip(module.tensors(self.config), (shape, shape[:1]), strict=False):
                yield ExpectedTensor(name=self.prefix(layer) + name, shape=size, shares=shares)

    def unread(self, layer: int) -> set[str]:
        """Return the names of tensors that a file may store in this block but the model ignores.

        These are the buffers in old checkpoints, and W_K, W_V and the key norm of a layer that uses
        the keys and values of an earlier layer.
        """
        unused = [m.tensors(self.config) for m in self._modules(layer, used=False)]
        names = (*BUFFERS, *(name for tensors in unused for name in tensors))
        return {self.prefix(layer) + name for name in names}

    def _heads_of(self, layer: int) -> Heads:
        dim = self.family.head_dims(self.config, self.kinds).get(layer, self.heads.dim)
        return replace(self.heads, dim=dim)

    def _modules(self, layer: int, *, used: bool) -> Iterator[Module]:
        """Yield the modules of the block that the layer uses, or those that it ignores."""
        key = self.family.kv_shared
        count = lookup(self.config, key) if key is not None else None
        shares = isinstance(count, int) and layer >= len(self.kinds) - count
        for module in self.family.modules:
            is_unused = shares and {role for role, _ in module.shares} <= KEY_VALUE
            if module.exists(self.config) and is_unused is not used:
                yield module

    def adapters(self, layer: int, uses: range) -> Iterator[ExpectedTensor]:
        """Yield the tensors of the low-rank adapters of a shared block.

        An adapter B_i A_i cannot be split by heads, because all heads share A_i. It is restored
        completely or not at all.

        Args:
            layer: the first layer that uses the block and that therefore stores its tensors.
            uses: the layers that use the block, as indices into the list of softmax layers.
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
    expected: list[ExpectedTensor], stored: Shapes, where: str, roles: Collection[Role]
) -> None:
    """Check that an attention block has the expected tensors, and no others.

    Args:
        expected: the tensors that a block of this family should have.
        stored: the shapes of the checkpoint's tensors in the block, by name, without buffers.
        where: the name of the block, for messages.
        roles: the roles whose tensors must be present; tensors with other roles may be missing.

    Raises:
        UserError: a tensor is missing, unexpected or empty, has a wrong shape, or belongs to an
            adapter that is not merged; the message names the first such tensor.
    """
    _refuse_unfinished(stored, where)
    unknown = sorted(stored.keys() - {tensor.name for tensor in expected})
    for tensor in expected:
        if tensor.name not in stored and not tensor.has_role(roles):
            continue
        if tensor.name not in stored:
            instead = f"; found {', '.join(map(repr, unknown))} instead" if unknown else ""
            raise UserError(
                f"{where}: {tensor.name} is missing (expected shape {list(tensor.shape)}){instead}",
                hint="merge adapters, then save the checkpoint with transformers' save_pretrained, "
                "which neither splits nor fuses projections in another way"
                if unknown
                else "check that the checkpoint is complete and config.json belongs to it",
            )
        if stored[tensor.name] != tensor.shape:
            raise UserError(
                f"{where}: {tensor.name} should have shape {list(tensor.shape)}, "
                f"found {list(stored[tensor.name])}",
                hint="head counts, head_dim and hidden size come from config.json",
            )
    if unknown:
        raise UserError(
            f"{where}: unexpected tensor {unknown[0]!r} of shape {list(stored[unknown[0]])}",
            hint="merge adapters first; quantised weights cannot be restored",
        )


def _refuse_unfinished(stored: Shapes, where: str) -> None:
    """Refuse incomplete weights: those with an unmerged adapter, and those with empty tensors."""
    for name, shape in stored.items():
        if ".lora_" in name or ".base_layer." in name:
            raise UserError(
                f"{where}: {name} belongs to an adapter that is not merged into the weights",
                hint="Merge it first: merge_and_unload() of peft, then save_pretrained",
            )
        if 0 in shape:
            raise UserError(
                f"{where}: {name} is empty",
                hint="DeepSpeed's ZeRO-3 saves empty tensors unless it gathers them "
                "(stage3_gather_16bit_weights_on_model_save); its shards still have the weights: "
                "python zero_to_fp32.py FOLDER OUT --safe_serialization",
            )


def fits(expected: list[ExpectedTensor], stored: Shapes) -> bool:
    """Return whether a block consists of exactly the expected tensors, in the expected shapes."""
    return {tensor.name: tensor.shape for tensor in expected} == stored


def role_tensors(layer: int, expected: list[ExpectedTensor]) -> list[RoleTensor]:
    """Return one record per tensor and role, sorted by the order of the roles in `Role`."""
    records = [
        RoleTensor(layer=layer, role=role, name=tensor.name, rows=rows)
        for tensor in expected
        for role, rows in tensor.shares
    ]
    return sorted(records, key=lambda record: ROLE_ORDER[record.role])
