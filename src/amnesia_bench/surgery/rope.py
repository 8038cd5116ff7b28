"""Do W_Q and W_K of two checkpoints expect the same rotations? If not, does it matter?"""

from __future__ import annotations

from collections.abc import Mapping

from amnesia_bench.errors import UserError
from amnesia_bench.weights.checkpoint import CONFIG, Checkpoint

# What users add to a config.json to serve longer contexts than the model was trained on.
SERVING_TYPES = ("yarn", "dynamic")
# What training fixes, whatever is added for serving.
TRAINED_KEYS = ("rope_theta", "partial_rotary_factor")

Rope = Mapping[str, object]


def check_rope(
    pre: Checkpoint, post: Checkpoint, ropes: tuple[Rope | None, Rope | None]
) -> list[str]:
    """Compare the ropes of two configs, as `routing_of` gives them.

    Returns:
        Notes on differences that leave W_Q and W_K what they are.

    Raises:
        UserError: their W_Q and W_K were trained for different rotations.
    """
    if ropes[0] is None or ropes[1] is None:
        if ropes[0] is not ropes[1]:
            raise _different(pre, post, [_row("rotary embedding", *map(_present, ropes))], None)
        return []
    keys = [k for k in sorted({*ropes[0], *ropes[1]}) if ropes[0].get(k) != ropes[1].get(k)]
    notes = []
    sections = [key for key in keys if _last(key).startswith("mrope_")]
    if sections:
        notes.append(
            f"{', '.join(sections)} differ: they give positions to images and video, and text is "
            "attended to in the same way with and without them."
        )
    served = [key for key in keys if key not in sections and _is_for_serving(key, ropes)]
    if served:
        notes.append(
            f"Only one config.json stretches the rope ({_listed(served, ropes)}). This is taken "
            "for a setting of serving, which leaves W_Q and W_K what they are; the restored "
            "checkpoint keeps post's. If one side was trained with it, the recall of pre may not "
            "come back in full."
        )
    trained = [key for key in keys if key not in sections and key not in served]
    if trained:
        rows = [_row(key, ropes[0].get(key), ropes[1].get(key)) for key in trained]
        raise _different(pre, post, rows, trained[0])
    return notes


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _is_for_serving(key: str, ropes: tuple[Rope | None, Rope | None]) -> bool:
    """Does this key belong to a stretched rope that one side has, on top of the same training?"""
    kind = key[: -len(_last(key))]
    a, b = (
        {_last(k): v for k, v in (rope or {}).items() if k[: -len(_last(k))] == kind}
        for rope in ropes
    )
    types = {a.get("rope_type"), b.get("rope_type")}
    return (
        "default" in types
        and bool(types & set(SERVING_TYPES))
        and all(a.get(trained) == b.get(trained) for trained in TRAINED_KEYS)
    )


def _listed(keys: list[str], ropes: tuple[Rope | None, Rope | None]) -> str:
    values = [(key, a, b) for key in keys for a, b in [[(r or {}).get(key) for r in ropes]]]
    return ", ".join(f"{key}: pre {a or '-'}, post {b or '-'}" for key, a, b in values)


def _present(rope: Rope | None) -> str:
    return "none" if rope is None else f"rope_theta {rope.get('rope_theta')}"


def _row(key: str, in_pre: object, in_post: object) -> str:
    a, b = ("absent" if value is None else value for value in (in_pre, in_post))
    return f"  {key}: pre {a}, post {b}"


def _different(pre: Checkpoint, post: Checkpoint, rows: list[str], key: str | None) -> UserError:
    lines = "\n".join(rows)
    edited = f"put the {key or 'rope'} of training back into that {CONFIG}"
    return UserError(
        f"Different rope:\n{lines}\n  (pre {pre.folder}, post {post.folder})\n"
        "W_Q and W_K are trained for one rotation per position: under another they look at other "
        "distances, so pre's would not bring pre's recall back.",
        hint="If post was trained with its rope, give as --pre the checkpoint that has this rope "
        "too: the one in which it was changed, before the fine-tune. If a config.json was edited "
        f"after training, {edited}.",
    )
