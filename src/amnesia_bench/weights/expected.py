"""The tensors that a softmax layer must have, and their comparison with a checkpoint's."""

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
    """A tensor of a softmax layer: its name, its shape, and the rows of each role in it."""

    name: str
    shape: Shape
    shares: tuple[tuple[Role, HeadRows | None], ...]

    def has_role(self, roles: Collection[Role]) -> bool:
        """Return whether some of its rows have one of these roles."""
        return any(role in roles for role, _ in self.shares)


@dataclass(frozen=True, kw_only=True)
class Block:
    """List the expected tensors of each attention block of a checkpoint."""

    family: Family
    config: Config
    heads: Heads
    kinds: tuple[LayerKind, ...]
    root: str

    def prefix(self, layer: int) -> str:
        """Return the prefix of the names of a layer's attention tensors."""
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
        """Return the names of tensors that may be stored in this block but that no code reads.

        These are buffers of old checkpoints, and W_K and W_V of layers that read another layer's
        keys and values.
        """
        unused = [m.tensors(self.config) for m in self._modules(layer, used=False)]
        names = (*BUFFERS, *(name for tensors in unused for name in tensors))
        return {self.prefix(layer) + name for name in names}

    def _heads_of(self, layer: int) -> Heads:
        dim = self.family.head_dims(self.config, self.kinds).get(layer, self.heads.dim)
        return replace(self.heads, dim=dim)

    def _modules(self, layer: int, *, used: bool) -> Iterator[Module]:
        """Yield the modules that the layer uses, or those that it does not."""
        key = self.family.kv_shared
        count = lookup(self.config, key) if key is not None else None
        shares = isinstance(count, int) and layer >= len(self.kinds) - count
        for module in self.family.modules:
            is_unused = shares and {role for role, _ in module.shares} <= KEY_VALUE
            if module.exists(self.config) and is_unused is not used:
                yield module

    def adapters(self, layer: int, uses: range) -> Iterator[ExpectedTensor]:
        """Yield the low-rank adapters of a shared block.

        An adapter has no rows per head: B_i A_i mixes all heads, so it is restored whole or not at
        all.

        Args:
            layer: the first layer that uses the block, which stores the tensors.
            uses: the indices, among all softmax layers, of those that use the block.
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
    """Check that an attention block has exactly the expected tensors.

    Args:
        expected: the tensors of the family's block.
        stored: name -> shape of the checkpoint's tensors in the block, without buffers.
        where: the name of the block in messages.
        roles: the roles whose tensors must be present.

    Raises:
        UserError: a tensor is missing, unknown, or of another shape; the message names the first.
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
    """Refuse weights that were saved incomplete: unmerged adapters, or empty tensors."""
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
    """Return whether a block holds exactly the expected tensors."""
    return {tensor.name: tensor.shape for tensor in expected} == stored


def role_tensors(layer: int, expected: list[ExpectedTensor]) -> list[RoleTensor]:
    """Return one record per tensor and role, in the order of the roles."""
    records = [
        RoleTensor(layer=layer, role=role, name=tensor.name, rows=rows)
        for tensor in expected
        for role, rows in tensor.shares
    ]
    return sorted(records, key=lambda record: ROLE_ORDER[record.role])
