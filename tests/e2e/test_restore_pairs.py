"""Base and fine-tune that differ in everything but W_Q and W_K: repaired, byte for byte, and noted.

Each case rewrites one side or both as hubs, trainers and converters store them.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.weights.numbers import encode
from tests.support.checkpoints import (
    HEADS,
    HIDDEN,
    KV_HEADS,
    SOFTMAX_LAYERS,
    VOCAB,
    Model,
    config,
    drifted,
    random_model,
    save,
    tensor_bytes,
)
from tests.support.surgery import diff, restore, verify

PLANNED = [
    f"model.layers.{layer}.self_attn.{name}_proj.weight"
    for layer in SOFTMAX_LAYERS
    for name in ("q", "k")
]
Rewrite = Callable[[Model], Model]


def unchanged(model: Model) -> Model:
    return model


def plus(*names: str) -> Rewrite:
    return lambda model: model | {name: np.ones((3, 5)) for name in names}


def minus(*parts: str) -> Rewrite:
    return lambda model: {n: x for n, x in model.items() if not any(part in n for part in parts)}


def renamed(rename: Callable[[str], str]) -> Rewrite:
    return lambda model: {rename(name): value for name, value in model.items()}


def fused_experts(model: Model) -> Model:
    gates = {n: x for n, x in model.items() if "mlp.gate_proj" in n}
    return minus("mlp.gate_proj")(model) | {
        name.replace("gate_proj.weight", "experts.gate_up_proj"): np.stack([x, x])
        for name, x in gates.items()
    }


def single_experts(model: Model) -> Model:
    gates = {n: x for n, x in model.items() if "mlp.gate_proj" in n}
    return minus("mlp.gate_proj")(model) | {
        name.replace("gate_proj", f"experts.{i}.gate_proj"): x
        for name, x in gates.items()
        for i in range(2)
    }


def in_wrapper(model: Model) -> Model:
    towers = {"model.visual.blocks.0.attn.qkv.weight": np.ones((6, 2))}
    return renamed(lambda n: n.replace("model.", "model.language_model.", 1))(model) | towers


def in_old_wrapper(model: Model) -> Model:
    towers = {"vision_tower.encoder.layers.1.self_attn.q_proj.weight": np.ones((6, 2))}
    return renamed(lambda n: n.replace("model.", "language_model.model.", 1))(model) | towers


def resized(model: Model) -> Model:
    return model | {"model.embed_tokens.weight": np.ones((VOCAB + 2, HIDDEN))}


MTP = ("mtp.fc.weight", "mtp.layers.0.self_attn.q_proj.weight", "mtp.norm.weight")
BUFFERS = tuple(f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in SOFTMAX_LAYERS)
# case -> how pre is stored, how post is stored, what the notes say
CASES: dict[str, tuple[Rewrite, Rewrite, tuple[str, ...]]] = {
    "predictor in pre": (
        plus(*MTP),
        unchanged,
        (
            "Only in pre, not needed for the repair: mtp.fc.weight, "
            "mtp.layers.0.self_attn.q_proj.weight, mtp.norm.weight (3 tensors).",
        ),
    ),
    "head in pre": (plus("lm_head.weight"), unchanged, ("pre, not needed", "lm_head.weight (1")),
    "head in post": (unchanged, plus("lm_head.weight"), ("post, not needed", "lm_head.weight (1")),
    "more tokens in post": (
        unchanged,
        resized,
        ("shape, the output keeps post's: model.embed_tokens.weight", "[32, 16]", "[34, 16]"),
    ),
    "buffers in pre": (plus(*BUFFERS), unchanged, ("rotary_emb.inv_freq (3 tensors)",)),
    "wrapper and text": (in_wrapper, unchanged, ("names differ", "visual")),
    "text and wrapper": (unchanged, in_old_wrapper, ("names differ", "vision_tower")),
    "two wrappers": (in_old_wrapper, in_wrapper, ("names differ",)),
    "decoder alone": (renamed(lambda n: n.removeprefix("model.")), unchanged, ("names differ",)),
    "compiled": (
        unchanged,
        renamed(lambda n: f"_orig_mod.{n}"),
        ("names differ", "training wrapper (_orig_mod.model.embed_tokens.weight)"),
    ),
    "DDP": (unchanged, renamed(lambda n: f"module.{n}"), ("training wrapper (module.",)),
    "PEFT": (unchanged, renamed(lambda n: f"base_model.model.{n}"), ("wrapper (base_model.",)),
    "compiled base": (renamed(lambda n: f"_orig_mod.{n}"), unchanged, ("names differ",)),
    "experts": (
        fused_experts,
        single_experts,
        ("model.layers.*.mlp.experts.gate_up_proj (5 tensors)", "experts.*.gate_proj.weight (10"),
    ),
    "W_Q and W_K alone": (
        lambda model: {name: model[name] for name in PLANNED},
        unchanged,
        ("Only in post",),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_needed_may_differ(case: str, tmp_path: Path) -> None:
    store_pre, store_post, says = CASES[case]
    model = random_model(0)
    pre = save(tmp_path / "pre", store_pre(model), shards=3)
    post = save(tmp_path / "post", store_post(drifted(model, 1)), shards=2)
    out = tmp_path / "out"
    record = restore(pre, post, out)
    restored, before = tensor_bytes(out), tensor_bytes(post)
    assert list(restored) == list(before)
    edited = {name for name in before if restored[name] != before[name]}
    want = {name: encode(model[name], "BF16") for name in PLANNED}
    place = {name: next(n for n in before if n.endswith(name.removeprefix("model.")))
             for name in PLANNED}  # fmt: skip
    assert edited == set(place.values()) == {tensor.name for tensor in record.tensors}
    assert all(restored[place[name]] == want[name] for name in PLANNED)
    notes = "\n".join(record.warnings)
    assert all(part in notes for part in says), notes
    assert len(record.warnings) <= 4
    assert json.loads((out / "restoration.json").read_text())["warnings"] == list(record.warnings)
    assert not verify(out).findings
    # The one that was restored is pre's again, by diff too.
    differing = {d.name_b for d in diff(pre, out).different}
    assert not differing & edited
    assert {d.name for d in diff(post, out).different} == edited


@pytest.mark.parametrize("variant", ["v", "qk_norms", "qk_pro", "qk_procrustes", "qk_blend"])
def test_every_rule_reads_pre_by_its_own_names(variant: str, tmp_path: Path) -> None:
    model = random_model(0)
    post_model = drifted(model, 1)
    post = save(tmp_path / "post", post_model, dtype="F64")
    plain = restore(save(tmp_path / "plain", model, dtype="F64"), post, tmp_path / "a", variant)
    wrapped = save(tmp_path / "wrapped", in_wrapper(model), dtype="F64")
    assert plain.tensors == restore(wrapped, post, tmp_path / "b", variant).tensors
    assert tensor_bytes(tmp_path / "a") == tensor_bytes(tmp_path / "b")


def test_a_wrapper_config_and_a_text_config(tmp_path: Path) -> None:
    model = random_model(0)
    pre = save(tmp_path / "pre", in_wrapper(model))
    wrapper = {"model_type": "novel_vl", "text_config": config(), "vision_config": {"depth": 1}}
    (pre / "config.json").write_text(json.dumps(wrapper))
    post = save(tmp_path / "post", drifted(model, 1))
    for a, b in ((pre, post), (post, pre)):
        assert len(restore(a, b, None).tensors) == len(PLANNED)


def save_mixed(folder: Path, model: Model, dtypes: dict[str, str]) -> Path:
    """Write one file in which some tensors have a dtype of their own."""
    save(folder, model)
    header: dict[str, Any] = {}
    data = b""
    for name, value in model.items():
        raw = encode(value, dtypes.get(name, "BF16"))
        header[name] = {
            "dtype": dtypes.get(name, "BF16"),
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    blob = len(text).to_bytes(8, "little") + text + data
    (folder / "model.safetensors").write_bytes(blob)
    return folder


def test_a_dtype_needs_a_cast_only_where_something_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model(0)
    norms = {n: "F32" for n in model if n.endswith("norm.weight")}
    post = save(tmp_path / "post", drifted(model, 1))
    pre = save_mixed(tmp_path / "pre", model, norms)
    record = restore(pre, post, tmp_path / "out")
    assert not record.cast
    assert any("Different dtype" in note for note in record.warnings)
    restored = tensor_bytes(tmp_path / "out")
    assert all(restored[name] == encode(model[name], "BF16") for name in PLANNED)
    mixed = save_mixed(tmp_path / "mixed", model, {PLANNED[0]: "F32"})
    command = ["restore", "--pre", str(mixed), "--post", str(post), "--dry-run"]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert f"Different dtypes of '{PLANNED[0]}': pre F32" in message
    assert "--cast" in message
    # A layer that is not chosen needs none either.
    assert main([*command, "--layers", "3,4"]) == 0
    assert main([*command, "--variant", "v"]) == 0
    assert "note: Different dtype" in capsys.readouterr().err
    assert main([*command, "--cast"]) == 0
    assert "note: Different dtype" not in capsys.readouterr().err


def test_diff_pairs_by_place_and_names_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model(0)
    moved = model | {PLANNED[0]: -model[PLANNED[0]]}
    a = save(tmp_path / "a", in_old_wrapper(model))
    b = save(tmp_path / "b", renamed(lambda n: f"_orig_mod.{n}")(moved))
    difference = diff(a, b)
    (only,) = difference.different
    assert (only.layer, only.role) == (1, "q")
    assert only.name == PLANNED[0].replace("model.", "language_model.model.", 1)
    assert only.name_b == f"_orig_mod.{PLANNED[0]}"
    assert only.changed_values == only.values == HEADS * 8 * HIDDEN
    assert only.relative_drift == pytest.approx(2)
    assert difference.identical == len(model) - 1
    assert difference.renamed == len(model)
    assert difference.only_in_b == ()
    assert difference.only_in_a == ("vision_tower.encoder.layers.1.self_attn.q_proj.weight",)
    assert main(["diff", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert f"only in {a}: vision_tower.encoder.layers.1.self_attn.q_proj.weight (1 tensor)" in text
    assert f"{len(model)} tensors have another name in B" in text
    assert "1 tensor differs" in text


def test_norms_that_overflow_are_left_out_of_the_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_model(0)
    pre = save(tmp_path / "pre", {n: x * 1e200 for n, x in model.items()}, dtype="F64")
    post = save(tmp_path / "post", model, dtype="F64")
    out = tmp_path / "out"
    assert main(["restore", "--pre", str(pre), "--post", str(post), "--out", str(out)]) == 0
    assert not verify(out).findings
    tensor = json.loads((out / "restoration.json").read_text())["tensors"][0]
    assert tensor["norm_pre"] is None
    assert tensor["changed_values"] == tensor["values"]
    assert main(["diff", str(pre), str(post)]) == 0
    assert "Warning" not in capsys.readouterr().err


PHI = {
    "model_type": "phi3",
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "sliding_window": None,
}


def phi(seed: int) -> Model:
    rng = np.random.default_rng(seed)
    shapes = {"qkv_proj": (32, HIDDEN), "o_proj": (HIDDEN, HIDDEN)}
    return {
        f"model.layers.{layer}.self_attn.{name}.weight": rng.standard_normal(shape)
        for layer in range(2)
        for name, shape in shapes.items()
    }


def test_each_role_of_a_fused_projection_has_its_own_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "model.layers.1.self_attn.qkv_proj.weight"
    model = phi(0)
    moved = model | {name: model[name].copy()}
    moved[name][:16] *= 2  # q: 4 heads of 4 rows
    moved[name][24:28, 3] = 0  # v: 2 heads of 4 rows, behind as many of k
    a, b = (
        save(tmp_path / label, weights, dtype="F64", config_changes={**PHI, "head_dim": None})
        for label, weights in (("a", model), ("b", moved))
    )
    difference = diff(a, b)
    assert [(d.role, d.changed_values, d.values) for d in difference.different] == [
        ("q", 16 * HIDDEN, 16 * HIDDEN),
        ("k", 0, 8 * HIDDEN),
        ("v", 4, 8 * HIDDEN),
    ]
    q, k, v = difference.different
    assert (q.relative_drift, k.relative_drift) == (pytest.approx(1), 0)
    values = model[name]
    assert v.relative_drift == pytest.approx(
        np.linalg.norm(values[24:28, 3]) / np.linalg.norm(values[24:])
    )
    assert difference.identical == 3
    assert main(["diff", str(a), str(b), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["different"]
    assert [(d["role"], d["changed_values"]) for d in printed] == [("q", 256), ("k", 0), ("v", 4)]
    assert main(["diff", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    rows = [line.split()[:4] for line in text.splitlines() if line.split()[:1] == ["1"]]
    assert rows[:3] == [["1", "q", "1", "256"], ["1", "k", "1", "0"], ["1", "v", "1", "4"]]
    assert "1 tensor differs, 3 are identical" in text


def test_a_projection_that_one_side_fuses_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fused = phi(0)
    split = {n: x for n, x in phi(1).items() if "qkv" not in n}
    for layer in range(2):
        start = f"model.layers.{layer}.self_attn."
        rows = np.split(phi(1)[f"{start}qkv_proj.weight"], [16, 24])
        split |= {f"{start}{n}_proj.weight": x for n, x in zip("qkv", rows, strict=True)}
    changes = {**PHI, "head_dim": None}
    pre = save(tmp_path / "pre", fused, config_changes=changes)
    post = save(tmp_path / "post", split, config_changes=changes)
    llama = save(tmp_path / "llama", split, config_changes=changes | {"model_type": "llama"})
    assert main(["restore", "--pre", str(pre), "--post", str(post), "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert "qkv_proj.weight is missing" in message
    assert "found 'model.layers.0.self_attn.k_proj.weight'" in message
    assert "save_pretrained" in message
    assert main(["restore", "--pre", str(pre), "--post", str(llama), "--dry-run"]) == 2
    assert "Different architectures" in capsys.readouterr().err
