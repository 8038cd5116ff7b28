"""Synthetic sharded checkpoints for benchmarks: HypeNet-9B's and Qwen3-8B's proportions, halved.

All widths are half of the real ones (hidden 2048, FFN 6144, 16 query and 4 KV heads of 128,
vocabulary 75,968), all 36 layers are there: a quarter of the weights, 4.4 GB in bf16, and the
same share of them in W_Q and W_K of the softmax layers.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS = 2048, 6144, 16, 4, 128, 75_968, 36
SOFTMAX_LAYERS = (1, 2, 4, 6, 7, 10, 24, 33, 34)  # HypeNet-9B's


def config(family: str) -> dict[str, object]:
    common = {
        "model_type": family,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    if family == "qwen3":
        return common | {"architectures": ["Qwen3ForCausalLM"]}
    mixers = ["attn" if i in SOFTMAX_LAYERS else "lightning-attn" for i in range(LAYERS)]
    return common | {
        "architectures": ["HypeNetForCausalLM"],
        "mixer_types": mixers,
        "attn_use_output_gate": True,
        "attn_use_rope": False,
        "attn_logits_scaling": None,
    }


def shapes(family: str) -> dict[str, tuple[int, ...]]:
    wide = HEADS * HEAD_DIM
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for i in range(LAYERS):
        linear = family == "hypenet" and i not in SOFTMAX_LAYERS
        narrow = wide if linear else KV_HEADS * HEAD_DIM
        layer: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj": (wide, HIDDEN),
            "self_attn.k_proj": (narrow, HIDDEN),
            "self_attn.v_proj": (narrow, HIDDEN),
            "self_attn.o_proj": (HIDDEN, wide),
            "self_attn.q_norm": (HEAD_DIM,),
            "self_attn.k_norm": (HEAD_DIM,),
            "mlp.gate_proj": (FFN, HIDDEN),
            "mlp.up_proj": (FFN, HIDDEN),
            "mlp.down_proj": (HIDDEN, FFN),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }
        if linear:
            layer |= {"self_attn.z_proj": (wide, HIDDEN), "self_attn.o_norm": (wide,)}
        elif family == "hypenet":
            layer |= {"self_attn.o_gate": (wide, HIDDEN)}
        sizes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    return sizes | {"model.norm.weight": (HIDDEN,)}


def write_pair(folder: Path, family: str, shard_bytes: int) -> tuple[Path, Path]:
    """Write folder/pre and folder/post: every value of post differs from pre in its last bits."""
    pre, post = folder / "pre", folder / "post"
    for path in (pre, post):
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config(family)))
    groups = list(_shards(shapes(family), shard_bytes))
    weight_map = {}
    rng = np.random.default_rng(0)
    for number, names in enumerate(groups, 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        weight_map |= dict.fromkeys(names, file)
        _write_shard(pre / file, post / file, {n: shapes(family)[n] for n in names}, rng)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    for path in (pre, post):
        (path / "model.safetensors.index.json").write_text(index)
    return pre, post


def _shards(sizes: dict[str, tuple[int, ...]], shard_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    filled = 0
    for name, shape in sizes.items():
        num_bytes = 2 * int(np.prod(shape))
        if names and filled + num_bytes > shard_bytes:
            yield names
            names, filled = [], 0
        names.append(name)
        filled += num_bytes
    yield names


def _write_shard(
    pre: Path, post: Path, sizes: dict[str, tuple[int, ...]], rng: np.random.Generator
) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in sizes.items():
        end = position + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with pre.open("wb") as pre_file, post.open("wb") as post_file:
        for file in (pre_file, post_file):
            file.write(len(raw).to_bytes(8, "little") + raw)
        for shape in sizes.values():
            # Random bits with the exponent's top bit cleared: finite bf16 of magnitude below 2.
            bits = rng.integers(0, 1 << 16, size=int(np.prod(shape)), dtype=np.uint16) & 0xBFFF
            pre_file.write(bits.tobytes())
            post_file.write((bits ^ 0b101).tobytes())
