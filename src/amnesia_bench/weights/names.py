"""Normalise tensor names, so that the tensors of two checkpoints can be paired."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The components are inserted anywhere in a name by torch.compile, FSDP, activation checkpointing
# and Lightning. The prefixes are added by DistributedDataParallel, DeepSpeed and PEFT.
WRAPPER_COMPONENTS = frozenset(
    ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
)
LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\.")
WRAPPER_PREFIXES = ("module.", "base_model.model.")
_MAX_NAMES = 3


def plain_name(name: str) -> str:
    """Return the name that a tensor had before its model was wrapped for training."""
    if "._" in name or name.startswith("_"):
        name = ".".join(part for part in name.split(".") if part not in WRAPPER_COMPONENTS)
    for prefix in WRAPPER_PREFIXES * 2:  # twice, because their order may vary
        name = name.removeprefix(prefix)
    return name


def by_place(names: Iterable[str], root: str | None) -> dict[str, str]:
    """Map the place of every tensor to its name; a place is a name without the decoder's prefix.

    Corresponding tensors of two checkpoints have equal places, whether the decoder is stored on its
    own or in a multimodal wrapper. For example, `model.layers.0.x` and
    `model.language_model.layers.0.x` have the place `layers.0.x`; `model.visual.y` and `visual.y`
    have the place `visual.y`.

    Args:
        names: the names on disk.
        root: the name prefix of the decoder as in `AttentionMap.root`; None if it is unknown.
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
    # Names that differ only in the removed prefix keep it, so that their places stay distinct.
    for place, same_place in outside.items():
        is_unique = len(same_place) == 1 and place not in inside
        inside |= {place: same_place[0]} if is_unique else {name: name for name in same_place}
    return inside


def grouped_names(names: Iterable[str]) -> str:
    """Format the first few names and the number of all names, for a message.

    Names that differ only in numbers are merged into one pattern, for example:
    `mtp.layers.*.q_proj.weight, mtp.norm.weight (3 tensors)`
    """
    patterns: dict[str, list[str]] = {}
    for name in names:
        patterns.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    shown = [p if len(matches) > 1 else matches[0] for p, matches in patterns.items()]
    more = f", and {len(shown) - _MAX_NAMES} more" if len(shown) > _MAX_NAMES else ""
    total = sum(map(len, patterns.values()))
    count = f"{total} tensors" if total > 1 else "1 tensor"
    return f"{', '.join(shown[:_MAX_NAMES])}{more} ({count})"
