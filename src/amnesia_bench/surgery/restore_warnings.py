"""Warnings about a restore that was planned: what the user may not expect of it."""

from __future__ import annotations

from collections.abc import Sequence

from amnesia_bench.config.schema import Variant
from amnesia_bench.records.roles import LayerKind
from amnesia_bench.surgery.layer_values import Pair
from amnesia_bench.surgery.plan import LayerPlan
from amnesia_bench.weights.file_names import ADAPTER_CONFIG
from amnesia_bench.weights.side_files import LeftOut


def restore_warnings(
    variant: Variant, pair: Pair, plans: Sequence[LayerPlan], left_out_files: LeftOut
) -> tuple[str, ...]:
    """Return warnings about the checkpoints and the selected layers of a restore."""
    kinds = pair.attention.layer_kinds
    warnings = []
    if (pair.post.folder / ADAPTER_CONFIG).exists():
        warnings.append(
            f"{pair.post.folder}: holds full weights and an adapter. The adapter is assumed to be "
            "merged already and is not copied."
        )
    whole = variant.select.whole_checkpoint
    if not whole and LayerKind.LINEAR not in kinds and len(plans) == len(kinds):
        warnings.append(
            f"All {len(kinds)} layers of this model are softmax attention, and all are restored. "
            "In such models the paper restores only the 7 to 9 layers that matter most for "
            "retrieval (App. L and M); see --layers."
        )
    sliding = pair.attention.layers(LayerKind.SLIDING)
    if sliding and not whole and not variant.select.include_sliding:
        warnings.append(
            f"Layers {', '.join(map(str, sliding))} attend over a sliding window and are not "
            "restored; restore.select.include_sliding=true restores them too."
        )
    if left_out_files.files:
        warnings.append(f"Not copied from post: {left_out_files.described()}")
    return tuple(warnings)
