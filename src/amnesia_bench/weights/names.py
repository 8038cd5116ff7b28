"""Tensor names without what wrappers put around a model: how two checkpoints are paired."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Components that torch.compile, FSDP, activation checkpointing and Lightning put anywhere in a
# name, and prefixes of DistributedDataParallel, DeepSpeed and PEFT.
WRAPPER_COMPONENTS = frozenset(
    ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
)
WRAPPER_PREFIXES = ("module.", "base_model.model.")
_NAMED = 3


def plain_name(name: str) -> str:
    """Return the name that a tensor had before its model was wrapped for training."""
    if "._" in name or name.startswith("_"):
        name = ".".join(part for part in name.split(".") if part not in WRAPPER_COMPONENTS)
    for prefix in WRAPPER_PREFIXES * 2:  # in either order
        name = name.removeprefix(prefix)
    return name


def by_place(names: Iterable[str], root: str | None) -> dict[str, str]:
    """Return place -> name of every tensor, where a place is a name that does not tell the root.

    Two checkpoints of one decoder have equal places for equal tensors, whether it is stored by
    itself or inside a wrapper for images: `model.layers.0.x` and `model.language_model.layers.0.x`
    are at `layers.0.x`, `model.visual.y` and `visual.y` at `visual.y`.

    Args:
        names: the names on disk.
        root: the plain prefix of the decoder; None where it is unknown.
    """
    root = root or ""
    outer = "".join(f"{part}." for part in root.split(".")[:-2])
    inside: dict[str, str] = {}
    outside: dict[str, list[str]] = {}
    for name in names:
        plain = plain_name(name)
        if root and plain.startswith(root):
            inside[plain.removeprefix(root)] = name
        else:
            outside.setdefault(plain.removeprefix(outer), []).append(name)
    # What only differs in what was cut off keeps its name.
    for place, sharing in outside.items():
        alone = len(sharing) == 1 and place not in inside
        inside |= {place: sharing[0]} if alone else {name: name for name in sharing}
    return inside


def grouped_names(names: Iterable[str]) -> str:
    """Return the first few names and their number; names that differ only in numbers become one.

    Example: `mtp.layers.*.q_proj.weight, mtp.norm.weight (3 tensors)`
    """
    patterns: dict[str, list[str]] = {}
    for name in names:
        patterns.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    shown = [p if len(same) > 1 else same[0] for p, same in patterns.items()]
    more = f", and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
    total = sum(map(len, patterns.values()))
    count = f"{total} tensors" if total > 1 else "1 tensor"
    return f"{', '.join(shown[:_NAMED])}{more} ({count})"
