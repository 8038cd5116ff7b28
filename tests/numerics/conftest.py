"""Small random models of every shape the official format allows, and the golden checkpoint."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from amnesia_bench.modeling import HypeNetConfig, HypeNetForCausalLM

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "hypenet_tiny"

# name -> what differs from BASE
SHAPES: dict[str, dict[str, object]] = {
    "base": {},
    "gqa_in_linear_layers": {"lightning_nkv": 2},
    "six_heads": {"lightning_nh": 6, "lightning_nkv": 3},
    "linear_heads_of_another_size": {"lightning_head_dim": 8},
    "untied_head": {"tie_word_embeddings": False},
    "logit_scale": {"attn_logit_scale_a": 7.5},
    "constant_logit_scale": {"attn_logit_multiplier": 1.7},
    "softmax_first_and_last": {"mixer_types": ["attn", "lightning-attn", "lightning_attn", "attn"]},
    "linear_only": {"mixer_types": ["lightning-attn"] * 4},
    "softmax_only": {"mixer_types": ["attn"] * 4},
    "rope_everywhere_and_bias": {"attn_use_rope": True, "attention_bias": True},
    "bare_mixers": {
        "attn_use_output_gate": False,
        "lightning_use_output_gate": False,
        "lightning_use_output_norm": False,
        "lightning_use_qk_norm": False,
        "lightning_use_rope": False,
        "lightning_scale": "1/d",
    },
}
BASE: dict[str, object] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "mixer_types": ["lightning-attn", "attn", "attn", "lightning-attn"],
    "max_position_embeddings": 16384,
    "tie_word_embeddings": True,
    "attn_use_rope": False,
    "attn_use_output_gate": True,
    "lightning_nkv": 4,
    "lightning_use_qk_norm": True,
    "lightning_use_output_norm": True,
    "lightning_use_output_gate": True,
    "rope_theta": 10000.0,
}

MakeModel = Callable[..., HypeNetForCausalLM]


@pytest.fixture
def make_model() -> MakeModel:
    """Build a random model of a named shape; weights large enough for every path to matter."""

    def make(shape: str = "base", **changes: object) -> HypeNetForCausalLM:
        torch.manual_seed(0)
        values = BASE | SHAPES[shape] | {"initializer_range": 0.3} | changes
        model = HypeNetForCausalLM(HypeNetConfig(**values))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5)
                elif name.endswith("bias"):
                    parameter.normal_(0, 0.3)
        return model.eval()

    return make


def random_ids(batch: int, num_tokens: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 97, (batch, num_tokens), generator=generator)
