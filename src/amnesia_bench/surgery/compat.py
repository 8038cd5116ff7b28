"""Refuse to combine two checkpoints if their W_Q and W_K are not interchangeable."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import cast

from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import AttentionMap, Role
from amnesia_bench.surgery.pairing import check_roles
from amnesia_bench.surgery.rope import Rope, check_rope
from amnesia_bench.weights.checkpoint import Checkpoint
from amnesia_bench.weights.file_names import CONFIG


def check_compatible(
    pre: Checkpoint,
    post: Checkpoint,
    maps: tuple[AttentionMap, AttentionMap],
    roles: Collection[Role],
) -> list[str]:
    """Check that W_Q and W_K mean the same in both checkpoints; other tensors may differ freely.

    Returns:
        Notes on config differences that do not change the meaning of W_Q and W_K.

    Raises:
        UserError: the checkpoints differ in their softmax layers or in a config value that affects
            the attention logits, or a tensor with one of `roles` is missing from one checkpoint or
            has different shapes in the two.
    """
    pre_map, post_map = maps
    if pre_map.family != post_map.family:
        raise _mismatch("architectures", pre_map.family, post_map.family, pre, post)
    kinds = pre_map.layer_kinds, post_map.layer_kinds
    if len(kinds[0]) != len(kinds[1]):
        raise _mismatch("numbers of layers", len(kinds[0]), len(kinds[1]), pre, post)
    if kinds[0] != kinds[1]:
        differing = [i for i, (a, b) in enumerate(zip(*kinds, strict=True)) if a != b]
        marks = [" ".join(f"{i}:{side[i]}" for i in differing) for side in kinds]
        raise _mismatch("layer marks", marks[0], marks[1], pre, post)
    pre_routing, post_routing = dict(pre_map.routing), dict(post_map.routing)
    ropes = pre_routing.pop("rope"), post_routing.pop("rope")
    for key in sorted(pre_routing.keys() | post_routing.keys()):
        if pre_routing.get(key) != post_routing.get(key):
            raise _mismatch(key, pre_routing.get(key), post_routing.get(key), pre, post)
    notes = check_rope(pre.folder, post.folder, cast("tuple[Rope | None, Rope | None]", ropes))
    check_roles(pre, post, maps, roles)
    return notes


def check_dtypes(pre: Checkpoint, post: Checkpoint, names: Iterable[str]) -> None:
    """Raise UserError unless each named tensor has the same dtype in both checkpoints."""
    for name in names:
        pre_dtype, post_dtype = (c.tensors[name][1].dtype for c in (pre, post))
        if pre_dtype != post_dtype:
            raise UserError(
                f"Different dtypes of {name!r}: pre {pre_dtype} ({pre.folder}), "
                f"post {post_dtype} ({post.folder}).",
                hint=f"--cast rounds the tensors taken from pre to {post_dtype}.",
            )


def _mismatch(
    what: str, in_pre: object, in_post: object, pre: Checkpoint, post: Checkpoint
) -> UserError:
    return UserError(
        f"Different {what}:\n  pre  {in_pre}  ({pre.folder})\n  post {in_post}  ({post.folder})",
        hint=f"Give as --pre the checkpoint that {post.folder} was fine-tuned from. If it is, one "
        f"{CONFIG} was edited: set the value back to that of training.",
    )
