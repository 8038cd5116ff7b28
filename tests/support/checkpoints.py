"""Small HypeNet-shaped checkpoint folders, written byte by byte and without torch."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from amnesia_bench.weights.numbers import encode

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN, VOCAB = 16, 4, 2, 8, 24, 32
MIXERS = ("lightning-attn", "attn", "lightning-attn", "attn", "attn")
SOFTMAX_LAYERS = (1, 3, 4)

Model = dict[str, np.ndarray]


def config(**changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["HypeNetForCausalLM"],
        "model_type": "hypenet",
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": FFN,
        "num_hidden_layers": len(MIXERS),
        "mixer_types": list(MIXERS),
        "lightning_nh": HEADS,
        "lightning_nkv": HEADS,
        "lightning_head_dim": HEAD_DIM,
        "rope_theta": 1_000_000.0,
        "attn_logits_scaling": "hype 500",
        "attn_use_output_gate": True,
        "attn_use_rope": False,
        "tie_word_embeddings": True,
        "vocab_size": VOCAB,
        **changes,
    }


def shapes() -> dict[str, tuple[int, ...]]:
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for i, mixer in enumerate(MIXERS):
        softmax = mixer == "attn"
        heads, kv = HEADS * HEAD_DIM, (KV_HEADS if softmax else HEADS) * HEAD_DIM
        attention = {
            "q_proj": (heads, HIDDEN),
            "k_proj": (kv, HIDDEN),
            "v_proj": (kv, HIDDEN),
            "o_proj": (HIDDEN, heads),
            "q_norm": (HEAD_DIM,),
            "k_norm": (HEAD_DIM,),
            **({"o_gate": (heads, HIDDEN)} if softmax else {}),
            **({} if softmax else {"o_norm": (heads,), "z_proj": (heads, HIDDEN)}),
        }
        for name, shape in attention.items():
            sizes[f"model.layers.{i}.self_attn.{name}.weight"] = shape
        sizes[f"model.layers.{i}.mlp.gate_proj.weight"] = (FFN, HIDDEN)
        sizes[f"model.layers.{i}.input_layernorm.weight"] = (HIDDEN,)
    sizes["model.norm.weight"] = (HIDDEN,)
    return sizes


def random_model(seed: int) -> Model:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name, shape in shapes().items()}


def drifted(model: Model, seed: int, scale: float = 0.1) -> Model:
    rng = np.random.default_rng(seed)
    return {name: x + scale * rng.standard_normal(x.shape) for name, x in model.items()}


def save(
    folder: Path,
    model: Mapping[str, np.ndarray],
    *,
    dtype: str = "BF16",
    shards: int = 1,
    config_changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint folder: config, tokenizer and weights in one file or several."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(**(config_changes or {}))))
    (folder / "tokenizer.json").write_text(json.dumps({"written_for": folder.name}))
    names = list(model)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", model, names, dtype)
        return folder
    weight_map = {}
    for i, chunk in enumerate(np.array_split(names, shards)):
        shard = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        write_safetensors(folder / shard, model, chunk.tolist(), dtype)
        weight_map |= dict.fromkeys(chunk.tolist(), shard)
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: Mapping[str, str]) -> None:
    index = {"metadata": {}, "weight_map": dict(weight_map)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_safetensors(
    path: Path, model: Mapping[str, np.ndarray], names: Iterable[str], dtype: str
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name in names:
        tensor = encode(np.asarray(model[name], np.float64), dtype)
        header[name] = {
            "dtype": dtype,
            "shape": list(model[name].shape),
            "data_offsets": [len(data), len(data) + len(tensor)],
        }
        data += tensor
    write_raw(path, header, data)


def write_raw(path: Path, header: Any, data: bytes) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def tensor_bytes(folder: Path) -> dict[str, bytes]:
    """Return every tensor of a folder as raw bytes, read with nothing of ours."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        blob = path.read_bytes()
        start = 8 + int.from_bytes(blob[:8], "little")
        for name, field in json.loads(blob[8:start]).items():
            if name != "__metadata__":
                begin, end = field["data_offsets"]
                found[name] = blob[start + begin : start + end]
    return found


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """Return every file under a folder; equal before and after means nothing was touched."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
