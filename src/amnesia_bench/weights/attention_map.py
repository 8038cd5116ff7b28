"""Find the softmax layers of a checkpoint and their tensors, from its config and tensor shapes."""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import AttentionMap, LayerKind, Role
from amnesia_bench.weights.config_keys import (
    Config,
    decoder_config,
    integer,
    optional_integer,
)
from amnesia_bench.weights.expected import (
    Block,
    ExpectedTensor,
    Shape,
    Shapes,
    check_attention_block,
    fits,
    role_tensors,
)
from amnesia_bench.weights.families import FAMILIES, REFUSED
from amnesia_bench.weights.family import Family
from amnesia_bench.weights.names import plain_name
from amnesia_bench.weights.routing import routing_of
from amnesia_bench.weights.row_layouts import Heads

ROUTING = (Role.Q, Role.K)
SPEECH = "talker."  # in the tensor names of Qwen-Omni's second decoder, which generates speech
MAX_LAYERS = 1 << 16  # prevents a damaged config from causing a huge allocation


def attention_map(
    config: Mapping[str, object],
    shapes: Mapping[str, Shape],
    roles: Collection[Role] = tuple(Role),
) -> AttentionMap:
    """Return the softmax layers of a checkpoint and the tensors that store W_Q, W_K, and so on.

    Args:
        config: the parsed config.json, as written by any version of transformers. If the model is
            a multimodal wrapper, only the config of its decoder is used.
        shapes: the shape of every tensor of the checkpoint, by its name on disk.
        roles: the roles whose tensors must be present; tensors with other roles may be missing.

    Returns:
        The map. Every softmax layer has all tensors with one of `roles`, all its tensors have the
        expected names and shapes, and no other layer has a complete set of such tensors. If several
        layers share one block (zamba2), its tensors are listed for the first of these layers only.

    Raises:
        UserError: the architecture is unknown or refused, or the tensors do not fit the config.
    """
    family, config = _family(config)
    disk_names = _disk_names(shapes)
    shapes = {plain: tuple(shapes[name]) for plain, name in disk_names.items()}
    _check_layer_count(config)
    kinds = family.layer_kinds(config)
    softmax = [i for i, kind in enumerate(kinds) if kind in (LayerKind.FULL, LayerKind.SLIDING)]
    if not softmax:
        raise UserError(f"{family.name}: config.json names no softmax layer: nothing to restore")
    heads = _heads(family, config)
    owners = _owners(family, config, softmax)
    names = sorted(shapes)
    block = Block(family=family, config=config, heads=heads, kinds=kinds, root="")
    block = replace(block, root=_root(block, owners, names, shapes))
    tensors = []
    for layer, kind in enumerate(kinds):
        stored = _block_tensors(block, layer, names, shapes)
        if layer in owners:
            expected = _expected(block, layer, owners, softmax)
            where = f"layer {layer} ({kind.value} attention, {family.name})"
            check_attention_block(expected, stored, where, roles)
            tensors += role_tensors(layer, [tensor for tensor in expected if tensor.name in stored])
        elif fits(list(block.tensors(layer)), stored):
            raise UserError(
                f"layer {layer} is not a softmax layer of its own according to config.json "
                f"({kind.value}), but {block.prefix(layer)} holds exactly the tensors of one",
                hint="config.json and the weights belong to two different models",
            )
    return AttentionMap(
        family=family.name,
        layer_kinds=kinds,
        num_query_heads=heads.query,
        num_kv_heads=heads.kv,
        head_dim=heads.dim,
        root=block.root,
        tensors=tuple(replace(tensor, name=disk_names[tensor.name]) for tensor in tensors),
        routing=routing_of(family, config, heads, kinds),
    )


def _family(config: Config) -> tuple[Family, Config]:
    """Return the family, and the decoder's config with defaults filled in and old keys renamed."""
    inner = decoder_config(config)
    model_type = inner.get("model_type")
    by_type = {name: family for family in FAMILIES for name in family.model_types}
    if isinstance(model_type, str) and model_type in REFUSED:
        raise UserError(
            f"{model_type}: {REFUSED[model_type]}",
            hint="no part of this checkpoint can be restored exactly",
        )
    if not isinstance(model_type, str) or model_type not in by_type:
        suggestions = difflib.get_close_matches(str(model_type), by_type, n=3, cutoff=0.5)
        raise UserError(
            f"config.json: unknown model_type {model_type!r}",
            hint=f"nearest known: {', '.join(suggestions) or 'none'}; "
            f"all: {', '.join(sorted(by_type))}. To add one, see amnesia_bench/weights/families.py",
        )
    family = by_type[model_type]
    renamed = {family.aliases.get(key, key): value for key, value in inner.items()}
    complete = {**family.defaults, **renamed}
    for condition, reason in family.refusals:
        if condition(complete):
            raise UserError(f"{model_type}: {reason}")
    return family, complete


def _heads(family: Family, config: Config) -> Heads:
    hidden = integer(config, "hidden_size")
    query = integer(config, family.num_query_heads)
    kv = optional_integer(config, family.num_kv_heads) or query
    inner = hidden * family.inner_multiple
    dim = optional_integer(config, family.head_dim) or inner // query
    if not dim:
        raise UserError(f"config.json: {query} query heads do not fit into a width of {inner}")
    if query % kv:
        raise UserError(
            f"config.json: {query} query heads cannot share {kv} key/value heads evenly"
        )
    return Heads(query=query, kv=kv, dim=dim, inner=inner, hidden=hidden)


def _owners(family: Family, config: Config, softmax: Sequence[int]) -> Sequence[int]:
    """Return the softmax layers that store an attention block of their own."""
    if family.shared is None:
        return softmax
    key = family.shared.count_key
    return softmax[: 1 if key is None else integer(config, key)]


def _disk_names(names: Collection[str]) -> dict[str, str]:
    """Map the `plain_name` of each tensor to its name on disk; refuse two copies of one tensor."""
    disk_names = {plain_name(name): name for name in names}
    if len(disk_names) < len(names):
        name = min(set(names) - set(disk_names.values()))
        other = disk_names[plain_name(name)]
        raise UserError(f"{name!r} and {other!r} are two copies of the same tensor")
    return disk_names


def _check_layer_count(config: Config) -> None:
    layers = optional_integer(config, "num_hidden_layers")
    if layers is not None and layers > MAX_LAYERS:
        raise UserError(f"config.json: num_hidden_layers is {layers}, more than any model has")


def _root(block: Block, owners: Sequence[int], names: Sequence[str], shapes: Shapes) -> str:
    """Return the name prefix of the decoder's tensors.

    Any prefix is accepted. If the first softmax layer exists under several prefixes (the blocks of
    a vision tower or a multi-token predictor can have the same names), the decoder is the one that
    has W_Q and W_K of every softmax layer, in the expected shapes.
    """
    block_path = block.prefix(owners[0])
    prefixes = {name.partition(block_path)[0] for name in names if block_path in name}
    stored = sorted(
        root for root in prefixes if not root or (root.endswith(".") and SPEECH not in root)
    )
    roots = stored
    if len(stored) > 1:
        roots = [
            root
            for root in stored
            if _has_routing_tensors(replace(block, root=root), owners, shapes)
        ]
    if len(roots) != 1:
        raise UserError(
            f"{block.family.name}: the softmax layer {owners[0]} (...{block_path}) should be "
            f"stored once; found under {', '.join(map(repr, roots or stored)) or 'no name'}",
            hint="save it without the copies (a draft model, averaged weights, a reference model)"
            if roots
            else "config.json and the weights may belong to two different models",
        )
    return roots[0]


def _has_routing_tensors(block: Block, layers: Sequence[int], shapes: Shapes) -> bool:
    return all(
        shapes.get(tensor.name) == tensor.shape
        for layer in layers
        for tensor in block.tensors(layer)
        if tensor.has_role(ROUTING)
    )


def _names_with_prefix(prefix: str, names: Sequence[str]) -> Sequence[str]:
    # `names` is sorted: an MoE checkpoint has 10^5 tensors, too many to scan for every layer.
    first = bisect_left(names, prefix)
    return names[first : bisect_left(names, prefix + "\U0010ffff", first)]


def _block_tensors(
    block: Block, layer: int, names: Sequence[str], shapes: Shapes
) -> dict[str, Shape]:
    """Map the names of one block's tensors to their shapes, without those in `Block.unread`."""
    unread = block.unread(layer)
    return {
        name: shapes[name]
        for name in _names_with_prefix(block.prefix(layer), names)
        if name not in unread
    }


def _expected(
    block: Block, layer: int, owners: Sequence[int], softmax: Sequence[int]
) -> list[ExpectedTensor]:
    first_use = owners.index(layer)
    uses = range(first_use, len(softmax), len(owners))
    return [*block.tensors(layer), *block.adapters(layer, uses)]
