"""May W_Q and W_K of one checkpoint be put into the other? Refuse unless they mean the same."""

from __future__ import annotations

from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import AttentionMap
from amnesia_bench.weights.checkpoint import Checkpoint


def check_compatible(
    pre: Checkpoint, post: Checkpoint, maps: tuple[AttentionMap, AttentionMap], *, cast: bool
) -> None:
    """Raise UserError unless pre and post are two states of one model.

    Compared: family, softmax layers, everything in the configs that changes what a logit means,
    the set of tensors, and each tensor's shape and (unless `cast`) dtype.
    """
    pre_map, post_map = maps
    if pre_map.family != post_map.family:
        raise _mismatch("architectures", pre_map.family, post_map.family, pre, post)
    if pre_map.layer_kinds != post_map.layer_kinds:
        kinds = [" ".join(f"{i}:{kind}" for i, kind in enumerate(m.layer_kinds)) for m in maps]
        raise _mismatch("layer marks", kinds[0], kinds[1], pre, post)
    pre_routing, post_routing = dict(pre_map.routing), dict(post_map.routing)
    for key in sorted(pre_routing.keys() | post_routing.keys()):
        if pre_routing.get(key) != post_routing.get(key):
            raise _mismatch(key, pre_routing.get(key), post_routing.get(key), pre, post)
    _check_tensors(pre, post, cast=cast)


def _check_tensors(pre: Checkpoint, post: Checkpoint, *, cast: bool) -> None:
    for name in sorted(pre.tensors.keys() ^ post.tensors.keys()):
        have, lack = (pre, post) if name in pre.tensors else (post, pre)
        raise UserError(
            f"Tensor {name!r} is in {have.folder} but not in {lack.folder}: these are not two "
            "states of one model."
        )
    for name, (_, pre_entry) in pre.tensors.items():
        _, post_entry = post.tensors[name]
        if pre_entry.shape != post_entry.shape:
            shapes = (list(pre_entry.shape), list(post_entry.shape))
            raise _mismatch(f"shapes of {name!r}", *shapes, pre, post)
        if pre_entry.dtype != post_entry.dtype and not cast:
            error = _mismatch(f"dtypes of {name!r}", pre_entry.dtype, post_entry.dtype, pre, post)
            error.hint = f"--cast rounds what is taken from pre to {post_entry.dtype}."
            raise error


def _mismatch(
    what: str, in_pre: object, in_post: object, pre: Checkpoint, post: Checkpoint
) -> UserError:
    return UserError(
        f"Different {what}:\n  pre  {in_pre}  ({pre.folder})\n  post {in_post}  ({post.folder})"
    )
