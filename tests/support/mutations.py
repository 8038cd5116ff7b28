"""JSON with something wrong in it, as editors, other programs and bad disks leave it."""

from __future__ import annotations

import random
from typing import Any


def mutated(value: Any, rng: random.Random) -> Any:
    """Return JSON with one thing in it changed: a key, a value, a type, an element."""
    odd = [None, True, -1, 1e400, 10**40, "", "\0", "x" * 300, [], {}, [[]], {"a": None}, 0.5]
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        how = rng.randrange(4)
        if how == 0:
            return {k: v for k, v in value.items() if k != key}
        if how == 1:
            return {(rng.choice(["", "step", k + "_"]) if k == key else k): v
                    for k, v in value.items()}  # fmt: skip
        return value | {key: mutated(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return [*value[:at], *([] if rng.random() < 0.3 else [mutated(value[at], rng)]),
                *value[at + 1 :]]  # fmt: skip
    return rng.choice(odd)
