"""The architecture table, and the architectures that are known but refused.

Tensor names and config keys are those of checkpoints on disk. In several families they differ from
the names in transformers' modules (transformers/conversion_mapping.py). The table was checked
against transformers 5.23.

To add a family, add a row to one of the *_families.py modules and a pico config to
tests/support/pico.py.
"""

from __future__ import annotations

from amnesia_bench.weights.hybrid_families import HYBRID_FAMILIES
from amnesia_bench.weights.mixed_families import MIXED_FAMILIES
from amnesia_bench.weights.softmax_families import SOFTMAX_FAMILIES
from amnesia_bench.weights.wrapped_families import WRAPPED_FAMILIES

FAMILIES = (*SOFTMAX_FAMILIES, *MIXED_FAMILIES, *WRAPPED_FAMILIES, *HYBRID_FAMILIES)

_MLA = (
    "W_K is not separable in multi-head latent attention: one latent projection produces both keys "
    "and values, so restoring the keys would change the values too"
)
_INDEXER = (
    "a trained indexer selects the keys that are attended to, and restoring W_Q and W_K would not "
    "restore its selection"
)
# Models with a kv_b_proj in transformers 5.23, and other model types that load as one of them.
_MLA_TYPES = (
    "axk1",
    "axk2",
    "bailing_hybrid",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "dots3_note",
    "glm4_moe_lite",
    "glm5_next",
    "glm5_next_text",
    "glm_moe_dsa",
    "hy_v4",
    "kimi_k2",
    "kimi_k25",
    "kimi_linear",
    "longcat_flash",
    "minicpm3",
    "mistral4",
    "mistral_large4",
    "mla",
    "youtu",
)
# Maps a model_type to the reason why its W_Q and W_K cannot be restored.
REFUSED = {
    **dict.fromkeys(_MLA_TYPES, _MLA),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), _INDEXER),
}
