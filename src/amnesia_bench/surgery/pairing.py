"""Match the tensors of two checkpoints of one model, whatever their names.

A fine-tune often stores its tensors differently from its base: without the multi-token predictor
or the vision tower, under another prefix, a tied head once instead of twice, experts fused.
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
    """The tensors that both have, as name in A -> name in B, and the names of the others."""

    common: Mapping[str, str]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]


def pair_tensors(
    a: Checkpoint, b: Checkpoint, maps: tuple[AttentionMap | None, AttentionMap | None]
) -> Pairing:
    """Match tensors by their place in the decoder, or by name if either has no map."""
    roots = [found.root if None not in maps and found is not None else None for found in maps]
    in_a, in_b = by_place(a.tensors, roots[0]), by_place(b.tensors, roots[1])
    return Pairing(
        common={name: in_b[place] for place, name in in_a.items() if place in in_b},
        only_in_a=tuple(sorted(in_a[place] for place in in_a.keys() - in_b.keys())),
        only_in_b=tuple(sorted(in_b[place] for place in in_b.keys() - in_a.keys())),
    )


def in_posts_names(pre: Checkpoint, pairing: Pairing) -> Checkpoint:
    """Return `pre` with only the tensors that post also has, under post's names."""
    tensors = {ours: pre.tensors[theirs] for theirs, ours in pairing.common.items()}
    return replace(pre, tensors=tensors)


def check_roles(
    pre: Checkpoint,
    post: Checkpoint,
    maps: tuple[AttentionMap, AttentionMap],
    roles: Collection[Role],
) -> None:
    """Raise UserError unless both have the same tensors of these roles, in equal shapes."""
    in_pre, in_post = (
        by_place((t.name for t in found.tensors if t.role in roles), found.root) for found in maps
    )
    for place in sorted(in_pre.keys() ^ in_post.keys()):
        have, lack = (pre, post) if place in in_pre else (post, pre)
        name = in_pre.get(place) or in_post[place]
        raise _other_form(f"{have.folder} has {name!r} and {lack.folder} has not")
    for place, name in sorted(in_post.items()):
        entries = pre.tensors[in_pre[place]][1], post.tensors[name][1]
        shapes = [list(entry.shape) for entry in entries]
        if shapes[0] != shapes[1]:
            raise _other_form(f"{name!r} has shape {shapes[0]} in pre and {shapes[1]} in post")


def notes_on_others(
    pre: Checkpoint, post: Checkpoint, pairing: Pairing, planned: Collection[str]
) -> Iterator[str]:
    """Yield how the two differ outside the plan; `pre` goes by post's names."""
    renamed = [(a, b) for a, b in pairing.common.items() if a != b]
    if renamed:
        theirs, ours = next(((a, b) for a, b in renamed if b in planned), renamed[0])
        yield (
            f"Tensor names differ (pre {theirs}, post {ours}): tensors were "
            "matched by layer and role, and the output keeps post's names."
        )
    wrapped = [name for name in post.tensors if plain_name(name) != name]
    if wrapped:
        yield (
            f"Post's tensor names carry a training wrapper ({wrapped[0]}), which "
            "transformers and vLLM do not recognise; the output keeps them."
        )
    for where, names in (("pre", pairing.only_in_a), ("post", pairing.only_in_b)):
        if names:
            yield f"Only in {where}, not needed for the repair: {grouped_names(names)}."
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


def _other_form(what: str) -> UserError:
    return UserError(
        f"W_Q and W_K of pre and post are of different forms: {what}.",
        hint="Give as --pre the checkpoint that post was fine-tuned from, or convert one of the "
        "two into the form of the other (load it in transformers, save_pretrained).",
    )
