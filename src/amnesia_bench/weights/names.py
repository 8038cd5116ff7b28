"""Strip the additions of training wrappers from tensor names, to pair two checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Components that torch.compile, FSDP, activation checkpointing and Lightning insert anywhere in a
# name, and prefixes that DistributedDataParallel, DeepSpeed and PEFT add.
WRAPPER_COMPONENTS = frozenset(
    ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
)
WRAPPER_PREFIXES = ("module.", "base_model.model.")
_MAX_NAMES = 3


def plain_name(name: str) -> str:
    """Return the name of a tensor before its model was wrapped for training."""
    if "._" in name or name.startswith("_"):
        name = ".".join(part for part in name.split(".") if part not in WRAPPER_COMPONENTS)
    for prefix in WRAPPER_PREFIXES * 2:  # in either order
        name = name.removeprefix(prefix)
    return name


def by_place(names: Iterable[str], root: str | None) -> dict[str, str]:
    """Return place -> name of every tensor; a place is a name without the decoder's prefix.

    Corresponding tensors of two checkpoints have equal places, whether the decoder is stored alone
    or in a multimodal wrapper: `model.layers.0.x` and `model.language_model.layers.0.x` have the
    place `layers.0.x`, `model.visual.y` and `visual.y` the place `visual.y`.

    Args:
        names: the names on disk.
        root: the plain prefix of the decoder; None if it is unknown.
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
    # Names that differ only in the removed prefix stay whole.
    for place, same_place in outside.items():
        is_unique = len(same_place) == 1 and place not in inside
        inside |= {place: same_place[0]} if is_unique else {name: name for name in same_place}
    return inside


def grouped_names(names: Iterable[str]) -> str:
    """Return the first few names and their count; names that differ only in numbers are merged.

    Example: `mtp.layers.*.q_proj.weight, mtp.norm.weight (3 tensors)`
    """
    patterns: dict[str, list[str]] = {}
    for name in names:
        patterns.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    shown = [p if len(matches) > 1 else matches[0] for p, matches in patterns.items()]
    more = f", and {len(shown) - _MAX_NAMES} more" if len(shown) > _MAX_NAMES else ""
    total = sum(map(len, patterns.values()))
    count = f"{total} tensors" if total > 1 else "1 tensor"
    return f"{', '.join(shown[:_MAX_NAMES])}{more} ({count})"
