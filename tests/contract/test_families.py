"""The architecture table against transformers: every family, on a checkpoint of its own classes.

What the map names is checked by changing exactly those rows on disk, loading the result, and asking
the attention modules themselves (found by class, not by our table) what changed on equal inputs.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from amnesia_bench.records.roles import AttentionMap, LayerKind, Role, RoleTensor
from amnesia_bench.weights.attention_map import attention_map
from tests.support import pico
from tests.support.pico import PICOS, AttentionCall, AttentionResult

ROUTING_ROLES = (Role.Q, Role.K, Role.Q_NORM, Role.K_NORM, Role.SINK)
Tensors = dict[str, torch.Tensor]


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def _map(folder: Path) -> AttentionMap:
    shapes = {name: tuple(t.shape) for name, t in load_file(folder / "model.safetensors").items()}
    return attention_map(_config(folder), shapes)


def _with_weights(folder: Path, target: Path, tensors: Tensors) -> Path:
    target.mkdir()
    (target / "config.json").write_text((folder / "config.json").read_text())
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def _changed_heads(a: AttentionResult, b: AttentionResult) -> set[int]:
    return {
        h for h in range(a.weights.shape[1]) if not torch.equal(a.weights[:, h], b.weights[:, h])
    }


def _uses(family: str, tensor: RoleTensor) -> set[int]:
    """The layers that compute with a tensor; only zamba's blocks serve more than one."""
    softmax = PICOS[family].softmax
    blocks = {"zamba": 1, "zamba2": 2}.get(family)
    if blocks is None:
        return {tensor.layer}
    if "adapter" in tensor.name:  # ...linear_q_adapter_list.<use>.<half>.weight
        return {softmax[int(tensor.name.split(".")[-3])]}
    return set(softmax[softmax.index(tensor.layer) :: blocks])


def _expected_heads(mapped: AttentionMap, tensor: RoleTensor, head: int | None) -> set[int]:
    """The query heads whose attention weights a change of one head's rows should change."""
    if tensor.role not in ROUTING_ROLES:
        return set()
    # A norm over all heads divides by a variance that every head's rows enter.
    projection = tensor.role in (Role.Q, Role.K)
    flat_norm = any(
        t.role is Role.Q_NORM and t.rows is not None and t.rows.head_dim > 1 for t in mapped.tensors
    )
    if head is None or (flat_norm and projection):
        return set(range(mapped.num_query_heads))
    if tensor.role in (Role.Q, Role.Q_NORM, Role.SINK):
        return {head}
    group = mapped.num_query_heads // mapped.num_kv_heads
    return set(range(head * group, (head + 1) * group))


@pytest.mark.parametrize("family", PICOS)
def test_the_map_finds_the_layers_transformers_builds(family: str, tmp_path: Path) -> None:
    pico.build(family, tmp_path, seed=0)
    mapped = _map(tmp_path)
    model = pico.load(family, tmp_path)
    modules = pico.attention_modules(model, family)
    assert mapped.layers(LayerKind.FULL, LayerKind.SLIDING) == tuple(sorted(modules))
    assert mapped.layers(LayerKind.FULL, LayerKind.SLIDING) == PICOS[family].softmax
    assert mapped.layers(LayerKind.SLIDING) == PICOS[family].sliding
    assert {tensor.role for tensor in mapped.tensors} >= {Role.Q, Role.K, Role.V, Role.O}
    order = [(t.layer, list(Role).index(t.role)) for t in mapped.tensors]
    assert order == sorted(order)
    for tensor in mapped.tensors:
        module = modules[tensor.layer]
        if tensor.role in (Role.Q, Role.K) and tensor.rows and hasattr(module, "head_dim"):
            assert tensor.rows.head_dim == module.head_dim, tensor


@pytest.mark.parametrize("family", PICOS)
def test_each_named_row_is_what_its_role_says(family: str, tmp_path: Path) -> None:
    pico.build(family, tmp_path / "a", seed=0)
    mapped = _map(tmp_path / "a")
    model = pico.load(family, tmp_path / "a")
    calls = pico.attention_calls(model, family, pico.prompt())
    before = pico.replay(model, family, calls)
    for i, tensor in enumerate(t for t in mapped.tensors if t.layer == mapped.tensors[-1].layer):
        tensors = load_file(tmp_path / "a" / "model.safetensors")
        head = None if tensor.rows is None else tensor.rows.num_heads - 1
        rows = slice(None) if tensor.rows is None else list(tensor.rows.rows(head or 0))
        noise = torch.randn(tensors[tensor.name].shape, generator=torch.Generator().manual_seed(i))
        tensors[tensor.name][rows] += noise[rows]
        changed = _with_weights(tmp_path / "a", tmp_path / f"b{i}", tensors)
        after = pico.replay(pico.load(family, changed), family, calls)
        for layer in calls:
            heads = _changed_heads(before[layer], after[layer])
            used = layer in _uses(family, tensor)
            expected = _expected_heads(mapped, tensor, head) if used else set()
            assert heads == expected, (layer, tensor)
            same_output = torch.equal(before[layer].output, after[layer].output)
            assert same_output is not used, (layer, tensor)


@pytest.mark.parametrize("family", PICOS)
def test_the_rows_of_a_tensor_are_shared_out_without_overlap(family: str, tmp_path: Path) -> None:
    pico.build(family, tmp_path, seed=0)
    tensors = load_file(tmp_path / "model.safetensors")
    mapped = _map(tmp_path)
    for name in {tensor.name for tensor in mapped.tensors if tensor.rows is not None}:
        records = [tensor.rows for tensor in mapped.tensors if tensor.name == name]
        rows = [row for r in records if r for h in range(r.num_heads) for row in r.rows(h)]
        assert sorted(rows) == list(range(tensors[name].shape[0])), name


@pytest.mark.parametrize("family", PICOS)
def test_copying_the_routing_roles_restores_the_attention_of_pre(
    family: str, tmp_path: Path
) -> None:
    pico.build(family, tmp_path / "pre", seed=0)
    pico.build(family, tmp_path / "post", seed=1)
    pre = load_file(tmp_path / "pre" / "model.safetensors")
    restored = load_file(tmp_path / "post" / "model.safetensors")
    for tensor in _map(tmp_path / "pre").tensors:
        if tensor.role in ROUTING_ROLES:
            heads = range(tensor.rows.num_heads) if tensor.rows else ()
            rows = (
                [row for h in heads for row in tensor.rows.rows(h)] if tensor.rows else slice(None)
            )
            restored[tensor.name][rows] = pre[tensor.name][rows]
    _with_weights(tmp_path / "post", tmp_path / "restored", restored)
    model = pico.load(family, tmp_path / "pre")
    calls = pico.attention_calls(model, family, pico.prompt())
    want = pico.replay(model, family, calls)
    got = pico.replay(pico.load(family, tmp_path / "restored"), family, calls)
    was = pico.replay(pico.load(family, tmp_path / "post"), family, calls)
    for layer in calls:
        assert torch.equal(got[layer].weights, want[layer].weights)
        assert not torch.allclose(was[layer].weights, want[layer].weights, atol=1e-3)
        assert not torch.allclose(got[layer].output, want[layer].output, atol=1e-3)


WITHOUT_ROPE = {
    "llama": (),
    "smollm3": (3,),
    "smollm3_window": (1, 3),
    "cohere2": (3,),
    "exaone4": (3,),
    "exaone_moe": (3,),
    "afmoe": (3,),
    "llama4": (1, 3),
}


@pytest.mark.parametrize("family", WITHOUT_ROPE)
def test_layers_without_rope_do_not_feel_positions(family: str, tmp_path: Path) -> None:
    pico.build(family, tmp_path, seed=0)
    model = pico.load(family, tmp_path)
    calls = pico.attention_calls(model, family, pico.prompt())
    moved = {layer: _elsewhere(call) for layer, call in calls.items()}
    before, after = pico.replay(model, family, calls), pico.replay(model, family, moved)
    same = tuple(n for n in calls if torch.equal(before[n].weights, after[n].weights))
    assert same == WITHOUT_ROPE[family]
    assert dict(_map(tmp_path).routing).get("layers_without_rope", ()) == same


def _elsewhere(call: AttentionCall) -> AttentionCall:
    """The same call with the rotations of other positions."""
    rotations = call.kwargs["position_embeddings"]
    parts = rotations if isinstance(rotations, tuple) else (rotations,)
    flipped = tuple(part.flip(1) for part in parts)
    changed = flipped if isinstance(rotations, tuple) else flipped[0]
    return replace(call, kwargs={**call.kwargs, "position_embeddings": changed})


# Born in transformers 5, or released with the nested rope_parameters of transformers 5.
ALWAYS_NESTED = ("lfm3", "gemma4_text")


def _in_v4_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """The same config as transformers 4 wrote it."""
    config = dict(config)
    if config["model_type"] in ("qwen2_vl", "qwen2_5_vl"):  # no text_config before 4.52
        text = _in_v4_spelling(config.pop("text_config"))
        return {**text, **config, "rope_scaling": {**text["rope_scaling"], "type": "mrope"}}
    if "text_config" in config:
        return {**config, "text_config": _in_v4_spelling(config["text_config"])}
    if "per_layer_config" in config:
        (size,) = {own["head_dim"] for own in config.pop("per_layer_config").values()}
        config["global_head_dim"] = size
    rope = config.pop("rope_parameters", None)
    names = {"rope_theta": "rope_theta", "partial_rotary_factor": "partial_rotary_factor"}
    if config["model_type"] == "gpt_neox":
        names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
    if config["model_type"] in ("gemma3_text", "gemma3n_text"):
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    if config["model_type"] in ("gemma3_text", "gemma3n_text", "olmo3"):
        rope = rope["full_attention"]
    if config["model_type"] in ALWAYS_NESTED:
        config["rope_parameters"] = rope
    elif rope is not None:
        config |= {names[key]: value for key, value in rope.items() if key in names}
        scaling = {key: value for key, value in rope.items() if key not in names}
        config["rope_scaling"] = None if scaling == {"rope_type": "default"} else scaling
    return config | _old_marks(config)


def _old_marks(config: dict[str, Any]) -> dict[str, list[str]]:
    if config["model_type"] not in ("granitemoehybrid", "zamba2", "nemotron_h"):
        return {}
    old = {"full_attention": "attention", "linear_attention": "mamba"}
    return {
        key: [old.get(mark, mark) for mark in config[key]]
        for key in ("layer_types", "layers_block_type")
        if key in config
    }


@pytest.mark.parametrize("family", PICOS)
def test_a_v4_and_a_v5_config_of_one_model_route_alike(family: str, tmp_path: Path) -> None:
    pico.build(family, tmp_path, seed=0)
    shapes = {n: tuple(t.shape) for n, t in load_file(tmp_path / "model.safetensors").items()}
    old = _in_v4_spelling(_config(tmp_path))
    assert attention_map(old, shapes) == attention_map(_config(tmp_path), shapes)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
# Ropes as configs of transformers 4 and remote code spell them: family -> keys of config.json.
OLD_ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("llama", {"rope_theta": 5e5}),
    "llama3": ("llama", {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 32}}),
    "llama3, length implied": ("llama", {"rope_scaling": LLAMA3}),
    "yarn": (
        "qwen2",
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "linear": ("qwen3", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "dynamic": ("qwen3", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "longrope": (
        "phi3",
        {
            "rope_scaling": {"type": "longrope", **LONG},
            "original_max_position_embeddings": 32,
        },
    ),
    "longrope as su": (
        "phi3",
        {"rope_scaling": {"type": "su", "original_max_position_embeddings": 32, **LONG}},
    ),
    "pythia": ("gpt_neox", {"rotary_emb_base": 25000, "rotary_pct": 0.5}),
    "gemma3 4B": ("gemma3", {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}),
    "gemma3 bases": ("gemma3", {"rope_theta": 5e5, "rope_local_base_freq": 5e3}),
    "qwen3_next": ("qwen3_next", {"rope_theta": 1e7, "partial_rotary_factor": 0.5}),
    "bamba": ("bamba", {"rope_theta": 5e5}),
    "lfm2": ("lfm2", {"rope_theta": 5e5}),
    "minimax_m2": ("minimax_m2", {"rotary_dim": 8, "partial_rotary_factor": None}),
    "recurrent_gemma": ("recurrent_gemma", {"rope_theta": 5e5}),
    "zamba2": ("zamba2", {"rope_theta": 5e5}),
    "falcon_h1": ("falcon_h1", {"rope_theta": 1e11}),
    "qwen2_vl": (
        "qwen2_vl",
        {"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}, "rope_theta": 5e5},
    ),
    "olmo3": (
        "olmo3",
        {"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0}},
    ),
    "gpt_oss": (
        "gpt_oss",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}},
    ),
    "gemma3n": ("gemma3n", {"rope_theta": 5e5, "rope_local_base_freq": 5e3}),
    "glm4": ("glm4", {"partial_rotary_factor": 1.0}),
}


@pytest.mark.parametrize("name", OLD_ROPES)
def test_an_old_rope_routes_as_transformers_reads_it(name: str, tmp_path: Path) -> None:
    family, changes = OLD_ROPES[name]
    pico.build(family, tmp_path, seed=0)
    shapes = {n: tuple(t.shape) for n, t in load_file(tmp_path / "model.safetensors").items()}
    plain = _in_v4_spelling(_config(tmp_path))
    old = {key: value for key, value in (plain | changes).items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(old))
    new = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert new.get("text_config", new)["rope_parameters"]
    routing = dict(attention_map(old, shapes).routing)
    assert routing == dict(attention_map(new, shapes).routing)
    assert routing["rope"] != dict(attention_map(plain, shapes).routing)["rope"]
