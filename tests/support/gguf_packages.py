"""Small GGUF files, and packages that contain them, in a folder that pip takes for its index."""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

HIDDEN, HEADS, HEAD_DIM, INNER, LAYERS, VOCAB = 64, 2, 32, 96, 2, 300
TEXTS = ["<pad>", "<eos>", "<bos>", "<unk>"]


def write_gguf(path: Path, architecture: str = "gemma3") -> dict[str, np.ndarray]:
    """Write a small Gemma 3; return its tensors, multiplied out, under their names in the file."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("small")
    writer.add_context_length(128)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_key_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(16)
    tokens = [*TEXTS, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"t{n}" for n in range(VOCAB - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(n) for n in range(VOCAB)])
    writer.add_token_types([3, 3, 3, 2, *[6] * 256, *[1] * (VOCAB - 260)])
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    values = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in _shapes().items():
        tensor = values.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, tensor)
            tensors[name] = tensor
        else:
            quantised = gguf.quants.quantize(tensor, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
            tensors[name] = gguf.quants.dequantize(quantised, gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def _shapes() -> dict[str, tuple[int, ...]]:
    layer = {
        "attn_norm": (HIDDEN,),
        "attn_q": (HEADS * HEAD_DIM, HIDDEN),
        "attn_k": (HEAD_DIM, HIDDEN),
        "attn_v": (HEAD_DIM, HIDDEN),
        "attn_output": (HIDDEN, HEADS * HEAD_DIM),
        "attn_q_norm": (HEAD_DIM,),
        "attn_k_norm": (HEAD_DIM,),
        "post_attention_norm": (HIDDEN,),
        "ffn_norm": (HIDDEN,),
        "ffn_gate": (INNER, HIDDEN),
        "ffn_up": (INNER, HIDDEN),
        "ffn_down": (HIDDEN, INNER),
        "post_ffw_norm": (HIDDEN,),
    }
    layers = {
        f"blk.{n}.{name}.weight": shape for n in range(LAYERS) for name, shape in layer.items()
    }
    return {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,), **layers}


def write_wheel(
    folder: Path, name: str, files: Mapping[str, bytes], *, requires: tuple[str, ...] = ()
) -> Path:
    """Write version 1.0 of a package with these files."""
    stem = re.sub(r"[-.]", "_", name)
    info = f"{stem}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nLicense: some terms\n"
    metadata += "".join(f"Requires-Dist: {required}\n" for required in requires)
    contents = {f"{stem}/{path}": data for path, data in files.items()}
    contents[f"{info}/METADATA"] = metadata.encode()
    contents[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(
        f"{path},sha256={_record_hash(data)},{len(data)}\n" for path, data in contents.items()
    )
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = folder / f"{stem}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in contents.items():
            archive.writestr(path, data)
    return wheel


def write_parts(folder: Path, name: str, content: bytes, numbers: tuple[int, ...]) -> None:
    """Write a package whose GGUF file is in parts; only the parts of these numbers are written."""
    size = -(-len(content) // len(numbers))
    requires = tuple(f"{name}-part{n + 1}==1.0" for n in range(len(numbers)))
    for n, number in enumerate(numbers):
        part = content[n * size : (n + 1) * size]
        write_wheel(folder, f"{name}-part{n + 1}", {f"data/m.gguf.part{number:02d}": part})
    checksums = f"{hashlib.sha256(content).hexdigest()}  m.gguf\n".encode()
    texts = {"data/SHA256SUMS": checksums, "data/TERMS.html": b"the terms"}
    write_wheel(folder, name, texts, requires=(*requires, "something-else"))


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
