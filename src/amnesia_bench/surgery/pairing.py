"""Match the tensors of two checkpoints of one model, even if their names differ.

A fine-tune is often stored differently from its base model: it may lack the multi-token predictor
or the vision tower, use another name prefix, store a tied output head once instead of twice, or
fuse the experts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import AttentionMap, Role
from amnesia_bench.weights.checkpoint import Checkpoint
from amnesia_bench.weights.names import by_place, grouped_names, plain_name


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """The tensors that two checkpoints have in common, and the names of all other tensors.

    `common` maps the name in A to the name in B.
    """

    common: Mapping[str, str]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]


def pair_tensors(
    a: Checkpoint, b: Checkpoint, maps: tuple[AttentionMap | None, AttentionMap | None]
) -> Pairing:
    """Match tensors by their position in the decoder, or by name if an attention map is missing."""
    roots = [m.root if None not in maps and m is not None else None for m in maps]
    in_a, in_b = by_place(a.tensors, roots[0]), by_place(b.tensors, roots[1])
    return Pairing(
        common={name: in_b[place] for place, name in in_a.items() if place in in_b},
        only_in_a=tuple(sorted(in_a[place] for place in in_a.keys() - in_b.keys())),
        only_in_b=tuple(sorted(in_b[place] for place in in_b.keys() - in_a.keys())),
    )


def with_post_names(pre: Checkpoint, pairing: Pairing) -> Checkpoint:
    """Return `pre` restricted to the tensors that post also has, renamed as in post."""
    tensors = {in_post: pre.tensors[in_pre] for in_pre, in_post in pairing.common.items()}
    return replace(pre, tensors=tensors)


def check_roles(
    pre: Checkpoint,
    post: Checkpoint,
    maps: tuple[AttentionMap, AttentionMap],
    roles: Collection[Role],
) -> None:
    """Raise UserError unless the tensors with these roles match in position and shape."""
    in_pre, in_post = (
        by_place((t.name for t in m.tensors if t.role in roles), m.root) for m in maps
    )
    for place in sorted(in_pre.keys() ^ in_post.keys()):
        having, lacking = (pre, post) if place in in_pre else (post, pre)
        name = in_pre.get(place) or in_post[place]
        raise _different_storage(f"{having.folder} has {name!r}, but {lacking.folder} does not")
    for place, name in sorted(in_post.items()):
        entries = pre.tensors[in_pre[place]][1], post.tensors[name][1]
        shapes = [list(entry.shape) for entry in entries]
        if shapes[0] != shapes[1]:
            raise _different_storage(
                f"{name!r} has shape {shapes[0]} in pre and {shapes[1]} in post"
            )


def check_all_weights(pre: Checkpoint, post: Checkpoint, names: Collection[str]) -> None:
    """Raise UserError unless pre has each named tensor of post, with the same shape.

    `pre` is the result of `with_post_names`.
    """
    for name in names:
        if name not in pre.tensors:
            raise UserError(
                f"{post.folder} has {name!r}, but {pre.folder} does not; this variant combines all "
                "weights of the two.",
                hint="Save post again with transformers' save_pretrained (tied weights are then "
                "stored once), or restore W_Q and W_K only: --variant qk",
            )
        shapes = [list(checkpoint.tensors[name][1].shape) for checkpoint in (pre, post)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{name!r} has shape {shapes[0]} in pre and {shapes[1]} in post; this variant "
                "combines all weights of the two.",
                hint="Give as --pre the checkpoint that post was fine-tuned from. If post has more "
                "tokens, restore W_Q and W_K only: --variant qk",
            )


def notes_on_others(
    pre: Checkpoint, post: Checkpoint, pairing: Pairing, planned: Collection[str]
) -> Iterator[str]:
    """Yield notes on unusual tensor names, and on differences in tensors outside the plan.

    Args:
        pre: the result of `with_post_names`, whose tensors are named as in post.
        post: the checkpoint to be repaired.
        pairing: the tensors of pre (A) and post (B).
        planned: the names of the tensors to be replaced, as in post.
    """
    renamed = [(a, b) for a, b in pairing.common.items() if a != b]
    if renamed:
        in_pre, in_post = next(((a, b) for a, b in renamed if b in planned), renamed[0])
        yield (
            f"Tensor names differ (pre {in_pre}, post {in_post}): tensors were "
            "matched by layer and role, and the output keeps post's names."
        )
    wrapped = [name for name in post.tensors if plain_name(name) != name]
    if wrapped:
        yield (
            f"Post's tensor names contain a training wrapper ({wrapped[0]}), which "
            "transformers and vLLM do not recognise; the output keeps them."
        )
    for side, names in (("pre", pairing.only_in_a), ("post", pairing.only_in_b)):
        if names:
            yield f"Only in {side}, not needed for the repair: {grouped_names(names)}."
    others = [name for name in pre.tensors if name not in planned]
    entries = {name: (pre.tensors[name][1], post.tensors[name][1]) for name in others}
    reshaped = [name for name, (a, b) in entries.items() if a.shape != b.shape]
    if reshaped:
        a, b = entries[reshaped[0]]
        yield (
            f"Different shape, the output keeps post's: {grouped_names(reshaped)}; the first is "
            f"{list(a.shape)} in pre and {list(b.shape)} in post."
        )
    recast = [name for name, (a, b) in entries.items() if a.dtype != b.dtype]
    if recast:
        yield f"Different dtype, the output keeps post's: {grouped_names(recast)}."


def _different_storage(what: str) -> UserError:
    return UserError(
        f"W_Q and W_K are stored differently in pre and post: {what}.",
        hint="Give as --pre the checkpoint that post was fine-tuned from, or convert one of the "
        "two to the format of the other (load it in transformers, then save_pretrained).",
    )
