"""A base as hubs publish it, a fine-tune as transformers saves it: restored, compared, verified.

The base has the config spelling of transformers 4, tensors that no fine-tune keeps (a multi-token
predictor, buffers, a tied head stored twice), an embedding of another dtype, other shards, and lies
in the hub's cache. The fine-tune is that base, loaded by an auto class, trained for a step, saved.
What must be restored follows from transformers' own modules and their forward code, not from our
table.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from amnesia_bench.config.load import load_variant
from amnesia_bench.weights.attention_map import attention_map
from amnesia_bench.weights.checkpoint import open_checkpoint
from tests.contract.test_families import _in_v4_spelling
from tests.support import pico
from tests.support.checkpoints import write_index
from tests.support.surgery import diff, restore, verify

SHARDS = 3
PREDICTOR = {
    "mtp.fc.weight": (32, 64),
    "mtp.layers.0.self_attn.q_proj.weight": (64, 32),
    "mtp.layers.0.self_attn.k_proj.weight": (32, 32),
    "mtp.norm.weight": (32,),
}


def _loads_as_text(model_type: str) -> bool:
    """Can AutoModelForCausalLM take the text model out of this wrapper?"""
    text = AutoConfig.for_model(model_type).get_text_config()
    return {model_type, text.model_type} <= MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()


WRAPPERS = [
    family
    for family, small in pico.PICOS.items()
    if small.auto is not AutoModelForCausalLM and _loads_as_text(small.model_type)
]
State = dict[str, torch.Tensor]


def publish(family: str, folder: Path) -> Path:
    """Write the base of a family as its authors would have with transformers 4."""
    pico.build(family, folder, seed=1)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    first = attention_map(config, shapes).tensors[0].name
    embedding = next(
        name
        for name, shape in shapes.items()
        if "embed" in name and shape[1:] == (32,) and shape[0] >= pico.VOCAB
    )
    tensors[embedding] = tensors[embedding].bfloat16()
    if not any(name.endswith("lm_head.weight") for name in tensors):
        tensors["lm_head.weight"] = tensors[embedding].clone()
    tensors |= {name: torch.ones(shape) for name, shape in PREDICTOR.items()}
    if "self_attn." in first:
        tensors[f"{first.partition('self_attn.')[0]}self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    weight_map = {}
    for i, names in enumerate(np.array_split(sorted(tensors), SHARDS)):
        shard = f"model-{i + 1:05d}-of-{SHARDS:05d}.safetensors"
        save_file({n: tensors[n].contiguous() for n in names}, folder / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(names.tolist(), shard)
    write_index(folder, weight_map)
    old = _in_v4_spelling(config) | {"transformers_version": "4.51.0"}
    old["torch_dtype"] = old.pop("dtype", "float32")
    (folder / "config.json").write_text(json.dumps(old))
    return in_cache(folder)


def in_cache(folder: Path) -> Path:
    """Move the files where the hub's cache keeps them; return the snapshot, a folder of links."""
    model = folder.with_name("models--authors--base")
    blobs, snapshot = model / "blobs", model / "snapshots" / "0123456789abcdef"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        blob = path.rename(blobs / hashlib.sha256(path.name.encode()).hexdigest())
        (snapshot / path.name).symlink_to(Path("../..") / "blobs" / blob.name)
    return snapshot


def fine_tune(model: PreTrainedModel, folder: Path) -> None:
    """Train for one step and save."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    prompt = pico.prompt()
    model(input_ids=prompt, labels=prompt, use_cache=False).loss.backward()
    optimizer.step()
    model.save_pretrained(folder)


def load(auto: type, folder: Path) -> PreTrainedModel:
    return auto.from_pretrained(folder, dtype=torch.float32)  # type: ignore[attr-defined]


def state(model: PreTrainedModel) -> State:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def routing_rows(model: PreTrainedModel, family: str) -> Iterator[tuple[int, str, str, Any]]:
    """Yield layer, role, parameter and rows of W_Q and W_K, as the modules' forward reads them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in pico.attention_modules(model, family).values():
        query, kv = (
            getattr(module.config, key, None)
            for key in ("num_attention_heads", "num_key_value_heads")
        )
        dim = module.head_size if hasattr(module, "head_size") else module.head_dim
        for path, parameter in module.named_parameters():
            name = names.pop(id(parameter), None)  # blocks that layers share are seen again
            rows = np.arange(len(parameter))
            heads = rows // dim
            kind = path.split(".")[0]
            read: dict[str, Any] = {}
            if kind == "q_proj":  # the gate of a head stands behind its q
                read["q"] = heads % 2 == 0 if len(rows) == 2 * query * dim else rows >= 0
            elif kind == "k_proj":
                read["k"] = rows >= 0
            elif kind == "qkv_proj":  # q heads, then k heads, then v heads
                read = {"q": heads < query, "k": (heads >= query) & (heads < query + kv)}
            elif kind == "query_key_value":  # q, k and v of a head, head by head
                read = {"q": heads % 3 == 0, "k": heads % 3 == 1}
            elif kind in ("linear_q_adapter_list", "linear_k_adapter_list"):
                read[kind.split("_")[1]] = rows >= 0
            for role, chosen in read.items() if name is not None else ():
                layer = int(re.findall(r"layers\.(\d+)\.", name)[0])
                yield layer, role, name, torch.from_numpy(chosen)


def check(family: str, auto: type, tmp_path: Path) -> None:
    base, sft, out = publish(family, tmp_path / "base"), tmp_path / "sft", tmp_path / "out"
    model = load(auto, base)
    before = state(model)
    fine_tune(model, sft)
    after = state(model)
    variant = load_variant("qk", ["restore.select.include_sliding=true"])
    record = restore(base, sft, out, variant)
    restored = state(load(auto, out))

    want = {name: value.clone() for name, value in after.items()}
    norms: dict[tuple[int, str], np.ndarray] = {}
    for layer, role, name, rows in routing_rows(model, family):
        assert (before[name][rows] != after[name][rows]).any(), name  # it was trained
        want[name][rows] = before[name][rows]
        moved = (after[name] - before[name])[rows].double().norm(), before[name][rows].double()
        norms.setdefault((layer, role), np.zeros(2))
        norms[layer, role] += [float(moved[0]) ** 2, float(moved[1].norm()) ** 2]
    for name, value in want.items():
        assert torch.equal(restored[name], value), name
    assert any(not torch.equal(restored[name], value) for name, value in before.items())

    owners = sorted({layer for layer, _ in norms})
    assert list(record.restored_layers) == owners
    assert set(owners) <= set(pico.PICOS[family].softmax)
    notes = "\n".join(record.warnings)
    assert "Only in pre, not needed for the repair" in notes
    assert "Different dtype" in notes
    assert not verify(out).findings

    difference = diff(base, sft)
    assert set(PREDICTOR) <= set(difference.only_in_a)
    found: dict[tuple[int, str], np.ndarray] = {}
    for d in difference.different:
        if d.role in ("q", "k") and d.layer is not None:
            assert d.norm_a is not None
            assert d.norm_b_minus_a is not None
            found.setdefault((d.layer, d.role), np.zeros(2))
            found[d.layer, d.role] += [d.norm_b_minus_a**2, d.norm_a**2]
    assert found.keys() == norms.keys()
    for key in norms:
        np.testing.assert_allclose(found[key], norms[key], rtol=1e-4)
    # Of a fused projection the other roles are still the fine-tune's.
    again = [d for d in diff(base, out).different if d.role in ("q", "k")]
    assert not any(d.changed_values for d in again)
    edited = {tensor.name for tensor in record.tensors}
    assert {d.name for d in diff(sft, out).different} == edited
    assert open_checkpoint(out).shapes == open_checkpoint(sft).shapes


@pytest.mark.parametrize("family", pico.PICOS)
def test_a_published_base_repairs_a_real_fine_tune(family: str, tmp_path: Path) -> None:
    check(family, pico.PICOS[family].auto, tmp_path)


@pytest.mark.parametrize("family", WRAPPERS)
def test_a_wrapper_repairs_a_fine_tune_of_its_text_model(family: str, tmp_path: Path) -> None:
    check(family, AutoModelForCausalLM, tmp_path)
