"""A pico Qwen3 teacher whose tokens are bytes, and its stage-1 student, for layer selection."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

import amnesia_bench as ab
from amnesia_bench.requests.checkpoints import ConvertRequest
from tests.support.byte_checkpoints import byte_tokenizer

LAYERS = 3
_SHARED = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "initializer_range": 0.3,
}


def write_shape(folder: Path) -> Path:
    """Write the config of a HypeNet with the teacher's shape, and return its path."""
    path = folder / "hypenet_pair.json"
    linear = {"lightning_nkv": 4, "expand_kv_proj": True}
    switches = ("qk_norm", "output_norm", "output_gate")
    linear |= {f"lightning_use_{name}": True for name in switches}
    mixers = ["lightning-attn", "attn", "lightning-attn"]
    softmax = {"attn_use_rope": False, "attn_use_output_gate": True, "rope_theta": 10000}
    path.write_text(json.dumps({**_SHARED, **linear, **softmax, "mixer_types": mixers}))
    return path


def write_pair(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write a teacher and its student, whose mixers differ from the teacher's as after training."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    model = Qwen3ForCausalLM(Qwen3Config(**_SHARED, rope_parameters=rope))
    model.save_pretrained(folder / "teacher")
    byte_tokenizer().save_pretrained(folder / "teacher")
    shape = ab.load_hypenet(write_shape(folder))
    request = ConvertRequest(teacher=folder / "teacher", model=shape, stage=1)
    ab.convert(request, folder / "converted")
    align(folder / "converted", folder / "student")
    return folder / "teacher", folder / "student"


def align(converted: Path, out: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a student with other weights in its mixers, in place of the training of stage 1."""
    out.mkdir()
    for path in converted.glob("*.json"):
        if path.name != "manifest.json":
            (out / path.name).write_bytes(path.read_bytes())
    weights = load_file(converted / "model.safetensors")
    generator = torch.Generator().manual_seed(1)
    for name in sorted(weights):
        if ".self_attn." in name:
            weights[name] += 0.1 * torch.randn(weights[name].shape, generator=generator)
    weights = {name: value.to(dtype) for name, value in weights.items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
