"""Select the KV heads that the top heads of a ranking read, to restore only their groups."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from amnesia_bench.config.schema import LayerHeads, Select
from amnesia_bench.errors import UserError
from amnesia_bench.records import codec
from amnesia_bench.records.head_ranking import HeadRanking, HeadScore
from amnesia_bench.records.roles import AttentionMap
from amnesia_bench.requests.checkpoints import RankedHeads
from amnesia_bench.store.files import read_json
from amnesia_bench.store.sealed_json import unsealed
from amnesia_bench.weights.checkpoint import Checkpoint
from amnesia_bench.weights.identity import parent_by_contents


def read_head_ranking(path: Path) -> HeadRanking:
    """Return the ranking in a file that `rank_heads` wrote.

    Raises:
        UserError: the file is not a ranking of heads, or it was changed after `rank_heads` wrote
            it.
    """
    content = unsealed(read_json(path), str(path), "Rank the heads again, to another file.")
    return codec.from_json(HeadRanking, content, str(path))


def select_ranked_heads(
    select: Select,
    chosen: RankedHeads,
    checkpoints: tuple[Checkpoint, Checkpoint],
    attention: AttentionMap,
) -> tuple[Select, str]:
    """Return a selection of the KV groups of the top heads of a ranking, and a note about them.

    A KV head is restored together with all query heads that read it: W_K of pre only fits W_Q of
    pre.

    Args:
        select: the variant's selection.
        chosen: the ranking, and the number of its heads to restore.
        checkpoints: pre and post.
        attention: the attention map of post.

    Raises:
        UserError: the file is not an intact ranking, it ranks the heads of another checkpoint or
            heads that this model does not have, or fewer heads than requested copy anything.
    """
    ranking = read_head_ranking(chosen.file)
    try:
        top = ranking.top(chosen.count)
    except ValueError as error:
        raise UserError(f"--heads: {chosen.file}: {error}") from error
    _check_checkpoint(chosen.file, ranking, checkpoints)
    group = attention.num_query_heads // attention.num_kv_heads
    kv_heads: dict[int, set[int]] = {}
    for entry in top:
        if not 0 <= entry.head < attention.num_query_heads:
            raise UserError(
                f"--heads: {chosen.file}: {entry.layer}.{entry.head} is not a head of this "
                f"{attention.family}; a layer has {attention.num_query_heads} "
                f"(0..{attention.num_query_heads - 1})"
            )
        kv_heads.setdefault(entry.layer, set()).add(entry.head // group)
    heads = tuple(
        LayerHeads(layer=layer, kv_heads=tuple(sorted(kv_heads[layer])))
        for layer in sorted(kv_heads)
    )
    return select.model_copy(update={"heads": heads}), _note(top, heads, group)


def _check_checkpoint(
    file: Path, ranking: HeadRanking, checkpoints: tuple[Checkpoint, Checkpoint]
) -> None:
    ranked = ranking.checkpoint
    for checkpoint in checkpoints:
        if parent_by_contents(ranked.role, checkpoint).identity == ranked.identity:
            return
    pre, post = (checkpoint.folder for checkpoint in checkpoints)
    raise UserError(
        f"--heads: {file}: ranks the heads of another checkpoint, {ranked.location}, neither of "
        f"{pre} nor of {post}",
        hint=f"amnesia rank-heads --checkpoint {pre} --prompts PROMPTS --out FILE",
    )


def _note(top: Sequence[HeadScore], heads: Sequence[LayerHeads], group: int) -> str:
    names = ", ".join(f"{entry.layer}.{entry.head}" for entry in top)
    num_groups = sum(len(entry.kv_heads) for entry in heads)
    note = f"Heads chosen (layer.head): {names}."
    if group > 1:
        note += (
            f" {group} query heads share a KV head and are restored together with it: "
            f"{num_groups * group} query heads and {num_groups} KV heads, in "
            f"{len(heads)} layers."
        )
    return note
