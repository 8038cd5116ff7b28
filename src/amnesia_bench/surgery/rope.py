"""Compare the rope settings of two checkpoints; refuse differences that affect W_Q and W_K."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from amnesia_bench.errors import UserError

# Rope types that users add to config.json to serve contexts longer than those seen in training.
SERVING_TYPES = ("yarn", "dynamic")
# Keys whose values are fixed by training; scaling for serving leaves them unchanged.
TRAINED_KEYS = ("rope_theta", "partial_rotary_factor")

Rope = Mapping[str, object]


def check_rope(pre: Path, post: Path, ropes: tuple[Rope | None, Rope | None]) -> list[str]:
    """Compare the rope settings of two checkpoints.

    Args:
        pre: the folder of pre, for messages.
        post: the folder of post, for messages.
        ropes: the "rope" entries that `routing_of` returned for pre and post.

    Returns:
        Notes on differences that do not affect W_Q and W_K.

    Raises:
        UserError: W_Q and W_K were trained with different rotations in pre and post.
    """
    if ropes[0] is None and ropes[1] is None:
        return []
    if ropes[0] is None or ropes[1] is None:
        raise _different_rope(
            pre, post, [_format_row("rotary embedding", *map(_summary, ropes))], None
        )
    keys = [k for k in sorted({*ropes[0], *ropes[1]}) if ropes[0].get(k) != ropes[1].get(k)]
    notes = []
    sections = [key for key in keys if _bare_key(key).startswith("mrope_")]
    if sections:
        notes.append(
            f"Different {', '.join(sections)}: these keys only affect images and video, not "
            "attention to text."
        )
    for_serving = [key for key in keys if key not in sections and _is_for_serving(key, ropes)]
    if for_serving:
        notes.append(
            f"Only one config.json scales the rope ({_format_rows(for_serving, ropes)}). This "
            "is treated as a serving-time setting, which does not change W_Q and W_K; the output "
            "keeps post's. If one side was trained with it, pre's recall may not come back in full."
        )
    trained = [key for key in keys if key not in sections and key not in for_serving]
    if trained:
        rows = [_format_row(key, ropes[0].get(key), ropes[1].get(key)) for key in trained]
        raise _different_rope(pre, post, rows, trained[0])
    return notes


def _bare_key(key: str) -> str:
    return key.rpartition(".")[2]


def _is_for_serving(key: str, ropes: tuple[Rope | None, Rope | None]) -> bool:
    """Return whether `key` differs only because one config scales this rope for serving.

    This is assumed if one side has the default rope type, the other side has one of SERVING_TYPES,
    and the values of TRAINED_KEYS are equal.
    """
    kind = key[: -len(_bare_key(key))]
    a, b = (
        {_bare_key(k): v for k, v in (rope or {}).items() if k[: -len(_bare_key(k))] == kind}
        for rope in ropes
    )
    types = {a.get("rope_type"), b.get("rope_type")}
    return (
        "default" in types
        and bool(types & set(SERVING_TYPES))
        and all(a.get(trained) == b.get(trained) for trained in TRAINED_KEYS)
    )


def _format_rows(keys: list[str], ropes: tuple[Rope | None, Rope | None]) -> str:
    a, b = (rope or {} for rope in ropes)
    return ", ".join(_format_row(key, a.get(key), b.get(key)) for key in keys)


def _summary(rope: Rope | None) -> object:
    return None if rope is None else {"rope_theta": rope.get("rope_theta")}


def _format_row(key: str, in_pre: object, in_post: object) -> str:
    a, b = ("none" if value is None else repr(value) for value in (in_pre, in_post))
    return f"{key}: pre {a}, post {b}"


def _different_rope(pre: Path, post: Path, rows: list[str], key: str | None) -> UserError:
    lines = "\n".join(f"  {row}" for row in rows)
    return UserError(
        f"Different rope:\n{lines}\n  (pre {pre}, post {post})\n"
        "W_Q and W_K only work with the rotations that they were trained with: in post, pre's "
        "would attend at wrong distances.",
        hint="If post was trained with its rope, give as --pre a checkpoint with the same rope "
        "(after the rope was changed, before the fine-tune); this --pre cannot repair it. If a "
        "config.json was edited after training, put the trained value of "
        f"{key or 'its rope'} back.",
    )
