"""The architecture table, and the architectures that are known but refused.

Names and keys are those of checkpoints on disk, which differ from module names in several families
(transformers/conversion_mapping.py). Read against transformers 5.23.

To add a family: add a row to one of the *_families.py, and a pico config to tests/pico.py.
"""

from __future__ import annotations

from amnesia_bench.weights.hybrid_families import HYBRID_FAMILIES
from amnesia_bench.weights.mixed_families import MIXED_FAMILIES
from amnesia_bench.weights.softmax_families import SOFTMAX_FAMILIES
from amnesia_bench.weights.wrapped_families import WRAPPED_FAMILIES

FAMILIES = (*SOFTMAX_FAMILIES, *MIXED_FAMILIES, *WRAPPED_FAMILIES, *HYBRID_FAMILIES)

_MLA = (
    "W_K is not separable in multi-head latent attention: one latent projection feeds both the "
    "keys and the values, so restoring the keys would change what is read as well as where"
)
_INDEXER = (
    "a trained indexer picks the keys that are read: it routes too, and W_Q and W_K alone would "
    "not bring back what it picked"
)
# kv_b_proj in transformers 5.23 (or the model_type of a checkpoint those classes load).
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
# model_type -> why W_Q and W_K cannot be restored.
REFUSED = {
    **dict.fromkeys(_MLA_TYPES, _MLA),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), _INDEXER),
}
