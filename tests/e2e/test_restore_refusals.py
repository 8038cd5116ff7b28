"""Bad input: one clear error, the inputs untouched, and nothing written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amnesia_bench.config.load import load_variant
from amnesia_bench.errors import UserError
from tests.support.checkpoints import (
    MIXERS,
    SOFTMAX_LAYERS,
    drifted,
    random_model,
    save,
    tensor_bytes,
    tree_bytes,
    write_raw,
)
from tests.support.surgery import restore, verify

Q1 = "model.layers.1.self_attn.q_proj.weight"
Change = Callable[[Path, Path], None]


def refused(pre: Path, post: Path, out: Path, variant: Any = "qk") -> UserError:
    """Restore, which must fail cleanly; return the error."""
    before = tree_bytes(out.parent), set(out.parent.rglob("*"))
    with pytest.raises(UserError) as error:
        restore(pre, post, out, variant)
    assert not out.exists()
    assert (tree_bytes(out.parent), set(out.parent.rglob("*"))) == before
    return error.value


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    model = random_model(0)
    pre = save(tmp_path / "pre", model, shards=2)
    return pre, save(tmp_path / "post", drifted(model, 1), shards=2), tmp_path / "out"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rope_theta": 10_000.0, "attn_use_rope": True}, "rope"),
        ({"attn_logits_scaling": "hype 362"}, "attn_logits_scaling"),
        ({"mixer_types": ["attn"] * 5}, "layer 0"),
        ({"num_key_value_heads": 4}, "k_proj"),
        ({"num_attention_heads": 8}, "q_proj"),
        ({"num_attention_heads": 2, "head_dim": 16, "num_key_value_heads": 1}, "norm"),
        ({"model_type": "hypernet"}, "hypenet"),
        ({"model_type": "deepseek_v3"}, "latent"),
        ({"num_attention_heads": "4"}, "num_attention_heads"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_configs_that_do_not_fit(
    changes: dict[str, Any], says: str, folders: tuple[Path, Path, Path]
) -> None:
    pre, post, out = folders
    config = json.loads((post / "config.json").read_text())
    (post / "config.json").write_text(json.dumps(config | changes))
    error = refused(pre, post, out)
    assert says in str(error)
    assert str(post) in error.what  # which of the two folders


def test_layer_marks_that_differ_on_both_sides(tmp_path: Path) -> None:
    model = random_model(0)
    pre = save(tmp_path / "pre", model)
    other = {
        n.replace("layers.0.", "layers.X.").replace("layers.1.", "layers.0.")
        .replace("layers.X.", "layers.1."): x
        for n, x in model.items()
    }  # fmt: skip
    marks = ["attn", "lightning-attn", "lightning-attn", "attn", "attn"]
    post = save(tmp_path / "post", other, config_changes={"mixer_types": marks})
    assert "layer marks" in refused(pre, post, tmp_path / "out").what


def test_w_q_is_missing(tmp_path: Path) -> None:
    model = random_model(0)
    post = save(tmp_path / "post", drifted(model, 1))
    del model[Q1]
    error = refused(save(tmp_path / "no_q", model), post, tmp_path / "out")
    assert Q1 in error.what
    assert str(tmp_path / "no_q") in error.what


def test_w_q_has_a_bias_on_one_side(tmp_path: Path) -> None:
    model = random_model(0)
    biases = {
        f"model.layers.{layer}.self_attn.{name}_proj.bias": np.zeros(rows)
        for layer in SOFTMAX_LAYERS
        for name, rows in (("q", 32), ("k", 16), ("v", 16), ("o", 16))
    }
    plain = save(tmp_path / "plain", model)
    other = drifted(model, 1) | biases
    biased = save(tmp_path / "biased", other, config_changes={"attention_bias": True})
    for pre, post in ((plain, biased), (biased, plain)):
        what = refused(pre, post, tmp_path / "out").what
        assert f"{biased} has 'model.layers.1.self_attn.k_proj.bias'" in what
        assert f"{plain} does not" in what


@pytest.mark.parametrize(
    ("layers", "changes", "says"),
    [
        (4, {"num_hidden_layers": 4, "mixer_types": list(MIXERS[:4])}, "numbers of layers"),
        (5, {"hidden_size": 32}, "hidden_size"),
        (5, {"num_attention_heads": 2, "num_key_value_heads": 1}, "num_kv_heads"),
        (5, {"head_dim": 4}, "head_dim"),
    ],
)
def test_a_model_of_another_size(
    layers: int, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    post = save(tmp_path / "post", random_model(0))
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    sizes |= {key: changes[key] for key in changes if key in sizes}
    rows = {
        "q_proj": sizes["num_attention_heads"] * sizes["head_dim"],
        "k_proj": sizes["num_key_value_heads"] * sizes["head_dim"],
    }
    model = {
        f"model.layers.{layer}.self_attn.{name}.weight": np.ones((count, sizes["hidden_size"]))
        for layer in SOFTMAX_LAYERS
        if layer < layers
        for name, count in rows.items()
    }
    error = refused(save(tmp_path / "pre", model, config_changes=changes), post, tmp_path / "out")
    assert f"Different {says}" in error.what
    assert "--pre" in str(error.hint)


def test_an_adapter_that_is_not_merged(tmp_path: Path) -> None:
    model = random_model(0)
    post = {f"base_model.model.{name}": value for name, value in drifted(model, 1).items()}
    for name in [name for name in post if "q_proj" in name]:
        post[name.replace("weight", "base_layer.weight")] = post.pop(name)
        post[name.replace("weight", "lora_A.default.weight")] = np.ones((2, 16))
        post[name.replace("weight", "lora_B.default.weight")] = np.ones((32, 2))
    folders = save(tmp_path / "pre", model), save(tmp_path / "post", post)
    error = refused(*folders, tmp_path / "out")
    assert "not merged" in error.what
    assert "merge_and_unload" in str(error.hint)


@pytest.mark.parametrize("side", ["pre", "post"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda blob: blob[:-100], "truncated"),
        (lambda blob: (1 << 40).to_bytes(8, "little") + blob[8:], "declares a header"),
        (lambda blob: blob[:8] + blob[8:].replace(b'"data_offsets": [0', b'"data_offsets": [2', 1),
         "gives tensor"),
        (lambda blob: b"", "too short"),
    ],
)  # fmt: skip
def test_damaged_shards(
    side: str, damage: Callable[[bytes], bytes], says: str, folders: tuple[Path, Path, Path]
) -> None:
    pre, post, out = folders
    shard = sorted((pre if side == "pre" else post).glob("*.safetensors"))[0]
    shard.write_bytes(damage(shard.read_bytes()))
    assert says in refused(pre, post, out).what


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("variant", ["qk", "qk_pro", "qk_blend"])
def test_nan_and_inf_in_what_would_be_written(value: float, variant: str, tmp_path: Path) -> None:
    model = random_model(0)
    post = save(tmp_path / "post", drifted(model, 1))
    model[Q1][3, 4] = value
    pre = save(tmp_path / "pre", model)
    error = refused(pre, post, tmp_path / "out", variant)
    assert Q1 in error.what
    assert "NaN" in error.what


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_projection_that_diverged_is_what_a_restore_can_repair(
    value: float, tmp_path: Path
) -> None:
    model = random_model(0)
    pre = save(tmp_path / "pre", model)
    moved = drifted(model, 1)
    moved[Q1][3, 4] = value
    record = restore(pre, save(tmp_path / "post", moved), tmp_path / "out")
    (tensor,) = (tensor for tensor in record.tensors if tensor.name == Q1)
    assert tensor.relative_drift is None
    assert not verify(tmp_path / "out").findings


def test_a_nan_that_stays_in_post_is_not_ours_to_refuse(tmp_path: Path) -> None:
    model = random_model(0)
    pre = save(tmp_path / "pre", model)
    moved = drifted(model, 1)
    moved["model.norm.weight"][0] = np.nan
    restore(pre, save(tmp_path / "post", moved), tmp_path / "out")
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["restore.select.layers=[0]"], "0 is not a softmax layer"),
        (["restore.select.layers=[99]"], "its softmax layers are 1, 3, 4"),
        (["restore.select.layers={top_drift: 4}"], "only 3 softmax layers"),
        (["restore.select.heads=[2]"], "2 is not a KV head"),
    ],
)
def test_selections_that_match_nothing(
    overrides: list[str], says: str, folders: tuple[Path, Path, Path]
) -> None:
    assert says in str(refused(*folders, load_variant("qk", overrides)))


def test_a_role_that_the_model_does_not_have(tmp_path: Path) -> None:
    model = {n: x for n, x in random_model(0).items() if "o_gate" not in n}
    no_gate = {"attn_use_output_gate": False}
    pre = save(tmp_path / "pre", model, config_changes=no_gate)
    post = save(tmp_path / "post", drifted(model, 1), config_changes=no_gate)
    variant = load_variant("qk", ["restore.select.roles=[gate]"])
    assert "role 'gate'" in refused(pre, post, tmp_path / "out", variant).what


def test_nothing_to_change(tmp_path: Path) -> None:
    model = random_model(0)
    pre, post = save(tmp_path / "pre", model), save(tmp_path / "post", model)
    error = refused(pre, post, tmp_path / "out")
    assert "changes no bit" in error.what
    assert "--allow-noop" in str(error)
    record = restore(pre, post, tmp_path / "out", allow_noop=True)
    assert not any(tensor.changed_values for tensor in record.tensors)


def test_out_exists_or_lies_inside_an_input(folders: tuple[Path, Path, Path]) -> None:
    pre, post, out = folders
    for inside in (pre / "out", post / "a" / "out", post, pre):
        before = tree_bytes(pre.parent)
        with pytest.raises(UserError):
            restore(pre, post, inside)
        assert tree_bytes(pre.parent) == before
    link = pre.parent / "link"
    link.symlink_to(post)
    with pytest.raises(UserError, match="is inside"):
        restore(pre, post, link / "out")
    out.mkdir()
    (out / "precious").write_text("x")
    with pytest.raises(UserError, match="already exists"):
        restore(pre, post, out)
    assert (out / "precious").read_text() == "x"


def test_side_files_that_lead_out_of_post(folders: tuple[Path, Path, Path]) -> None:
    pre, post, out = folders
    secret = post.parent / "secret"
    secret.write_text("x")
    (post / "notes.txt").symlink_to(secret)
    assert "outside the checkpoint folder" in refused(pre, post, out).what


@pytest.mark.parametrize("dtype", ["I16", "U16", "F8_E4M3"])
def test_quantised_tensors(dtype: str, tmp_path: Path) -> None:
    model = random_model(0)
    pre, post = save(tmp_path / "pre", model), save(tmp_path / "post", drifted(model, 1))
    for folder in (pre, post):
        path = folder / "model.safetensors"
        blob = path.read_bytes()
        start = 8 + int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8:start])
        del header["__metadata__"]
        for field in header.values():
            field["dtype"] = dtype
        if dtype == "F8_E4M3":  # one byte a value: halve data and offsets
            for field in header.values():
                field["data_offsets"] = [offset // 2 for offset in field["data_offsets"]]
            blob = blob[: start + (len(blob) - start) // 2]
        write_raw(path, header, blob[start:])
    assert f"has dtype {dtype}" in refused(pre, post, tmp_path / "out").what


@pytest.mark.parametrize("name", ["q_proj.qweight", "q_proj.weight_scale_inv"])
def test_a_part_of_a_quantiser_beside_what_is_planned(name: str, tmp_path: Path) -> None:
    model = random_model(0) | {f"model.layers.1.self_attn.{name}": np.ones((2, 2))}
    pre, post = save(tmp_path / "pre", model), save(tmp_path / "post", drifted(model, 1))
    error = refused(pre, post, tmp_path / "out")
    assert f"holds quantised weights (it holds 'model.layers.1.self_attn.{name}')" in error.what


def test_a_quantised_tensor_that_is_not_planned_stays_as_it_is(tmp_path: Path) -> None:
    model = random_model(0)
    pre, post = save(tmp_path / "pre", model), save(tmp_path / "post", drifted(model, 1))
    for folder in (pre, post):
        path = folder / "model.safetensors"
        blob = path.read_bytes()
        start = 8 + int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8:start])
        field = header["model.embed_tokens.weight"]
        field |= {"dtype": "F8_E4M3", "shape": [field["shape"][0] * 2, field["shape"][1]]}
        write_raw(path, header, blob[start:])
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "fp8"}
        (folder / "config.json").write_text(json.dumps(config))
    record = restore(pre, post, tmp_path / "out")
    said = f"{post}: some of its weights are quantised ('model.embed_tokens.weight' has dtype F8"
    assert any(warning.startswith(said) for warning in record.warnings)
    before, after = tensor_bytes(post), tensor_bytes(tmp_path / "out")
    assert after["model.embed_tokens.weight"] == before["model.embed_tokens.weight"]
    assert after[Q1] == tensor_bytes(pre)[Q1]


def test_a_base_whose_experts_only_are_quantised_is_not_called_a_leftover(tmp_path: Path) -> None:
    """As gpt-oss is published: the parts of MXFP4 have no partner in a fine-tune in BF16."""
    model = random_model(0)
    parts = {"model.layers.0.mlp.experts.down_proj_blocks": np.ones((2, 2))}
    config = {"quantization_config": {"quant_method": "mxfp4"}}
    pre = save(tmp_path / "pre", model | parts, config_changes=config)
    post = save(tmp_path / "post", drifted(model, 1))
    warnings = restore(pre, post, tmp_path / "out").warnings
    assert f"{pre}: some of its weights are quantised" in " ".join(warnings)
    assert "leftover" not in " ".join(warnings)


def test_a_model_with_a_copy_of_itself(tmp_path: Path) -> None:
    model = random_model(0)
    pre = save(tmp_path / "pre", model)
    twice = drifted(model, 1) | {f"draft.{name}": value for name, value in model.items()}
    error = refused(pre, save(tmp_path / "post", twice), tmp_path / "out")
    assert "should be stored once; found under 'draft.model.', 'model.'" in error.what
    assert (
        error.hint
        == "save it without the copies (a draft model, averaged weights, a reference model)"
    )


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_quantization_config_that_outlived_its_weights(
    wrapped: bool, folders: tuple[Path, Path, Path]
) -> None:
    pre, post, out = folders
    config = json.loads((post / "config.json").read_text())
    inner = config | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    config = {"model_type": "wrapper", "text_config": inner} if wrapped else inner
    (post / "config.json").write_text(json.dumps(config))
    record = restore(pre, post, out)
    assert tensor_bytes(out)[Q1] == tensor_bytes(pre)[Q1]
    assert [warning for warning in record.warnings if "all weights are plain numbers" in warning]


def test_two_architectures_with_the_same_tensors(tmp_path: Path) -> None:
    model = {
        name: value
        for name, value in random_model(0).items()
        if ".layers.1." in name and not name.endswith(("_norm.weight", "o_gate.weight"))
    }
    model = {name.replace("layers.1.", "layers.0."): value for name, value in model.items()}
    folders = [
        save(
            tmp_path / model_type,
            weights,
            config_changes={"model_type": model_type, "num_hidden_layers": 1},
        )
        for model_type, weights in (("llama", model), ("jamba", drifted(model, 1)))
    ]
    config = json.loads((folders[1] / "config.json").read_text())
    config |= {"attn_layer_period": 1, "attn_layer_offset": 0}
    (folders[1] / "config.json").write_text(json.dumps(config))
    assert "Different architectures" in refused(*folders, tmp_path / "out").what
