"""From a Qwen3 teacher to a stage-1 student and a stage-2 hybrid."""

import json
import math

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.errors import UserError
from amnesia_bench.modeling import HypeNetForCausalLM
from amnesia_bench.modeling.shard_writer import ShardWriter
from amnesia_bench.requests.checkpoints import ConvertRequest
from tests.numerics.conftest import random_ids
from tests.numerics.test_model_formula import lightning_mixer

STUDENT = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "mixer_types": ["lightning-attn", "attn", "attn", "lightning-attn"],
    "max_position_embeddings": 4096,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "attn_use_rope": False,
    "attn_use_output_gate": True,
    "lightning_nkv": 4,
    "lightning_use_qk_norm": True,
    "lightning_use_output_norm": True,
    "lightning_use_output_gate": True,
    "expand_kv_proj": True,
}


def _teacher(folder, **changes):
    torch.manual_seed(0)
    shared = {k: v for k, v in STUDENT.items() if k in Qwen3Config().to_dict()}
    rope = {"rope_type": "default", "rope_theta": 1000000.0}
    values = shared | {"rope_parameters": rope, "initializer_range": 0.2} | changes
    model = Qwen3ForCausalLM(Qwen3Config(**values)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return model


def _config_file(folder, **changes):
    path = folder / "student.json"
    path.write_text(json.dumps(STUDENT | changes))
    return path


@pytest.fixture
def teacher(tmp_path):
    return _teacher(tmp_path / "teacher")


def _convert(tmp_path, stage, name="out", config=None, **options):
    request = ConvertRequest(
        teacher=tmp_path / "teacher",
        model=ab.load_hypenet(config or _config_file(tmp_path)),
        stage=stage,
        **options,
    )
    ab.convert(request, tmp_path / name)
    return load_file(tmp_path / name / "model.safetensors")


def test_hybrid_keeps_the_teachers_softmax_layers_bit_for_bit(tmp_path, teacher):
    hybrid, source = _convert(tmp_path, 2), teacher.state_dict()
    for layer in (1, 2):
        mine = {k for k in hybrid if k.startswith(f"model.layers.{layer}.")}
        theirs = {k for k in source if k.startswith(f"model.layers.{layer}.")}
        assert mine - theirs == {f"model.layers.{layer}.self_attn.o_gate.weight"}
        assert theirs <= mine
        for name in theirs:
            assert torch.equal(hybrid[name], source[name])
        gate = hybrid[f"model.layers.{layer}.self_attn.o_gate.weight"]
        assert gate.std() == pytest.approx(0.02, rel=0.1)
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(hybrid[name], source[name])
    assert "lm_head.weight" not in hybrid


def test_linear_layers_share_heads_as_grouped_attention_does(tmp_path, teacher):
    hybrid, source = _convert(tmp_path, 2), teacher.state_dict()
    for layer in (0, 3):
        at = f"model.layers.{layer}.self_attn"
        for name in ("q_proj", "o_proj", "q_norm", "k_norm"):
            assert torch.equal(hybrid[f"{at}.{name}.weight"], source[f"{at}.{name}.weight"])
        for name in ("k_proj", "v_proj"):
            expanded, shared = (w[f"{at}.{name}.weight"] for w in (hybrid, source))
            for head in range(4):
                group = head // 2
                assert torch.equal(
                    expanded[16 * head : 16 * head + 16], shared[16 * group : 16 * group + 16]
                )
        assert torch.equal(hybrid[f"{at}.o_norm.weight"], torch.ones(64))
        gate = hybrid[f"{at}.z_proj.weight"]
        assert gate.abs().max() <= 1 / math.sqrt(32)
        assert gate.std() == pytest.approx(1 / math.sqrt(3 * 32), rel=0.05)


@torch.no_grad()
def test_first_forward_of_the_student_equals_the_formula(tmp_path, teacher):
    _convert(tmp_path, 1)
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert type(student) is HypeNetForCausalLM
    assert student.config.mixer_types == ["lightning-attn"] * 4
    ids = random_ids(1, 70)
    taught = teacher(ids, output_hidden_states=True).hidden_states
    weights = teacher.state_dict()
    z = student.state_dict()
    for layer in range(4):
        at = f"model.layers.{layer}.self_attn"
        # Written from the teacher's weights: each key/value head serves two query heads.
        own = {k: v for k, v in weights.items() if k.startswith(at)}
        for name in ("k_proj", "v_proj"):
            heads = own[f"{at}.{name}.weight"].view(2, 16, 32)
            own[f"{at}.{name}.weight"] = heads[[0, 0, 1, 1]].reshape(64, 32)
        own[f"{at}.o_norm.weight"] = torch.ones(64)
        own[f"{at}.z_proj.weight"] = z[f"{at}.z_proj.weight"]
        x = teacher.model.layers[layer].input_layernorm(taught[layer])
        seen = {}
        hook = student.model.layers[layer].self_attn.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.update(inputs=args[1])
        )
        student(ids, use_cache=False)
        hook.remove()
        output, none = student.model.layers[layer].self_attn(x, seen["inputs"])
        assert none is None
        expected = lightning_mixer(student.config, own, at, x)
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_hybrid_takes_trained_linear_layers_from_a_student(tmp_path, teacher):
    trained = _convert(tmp_path, 1, "stage1")
    trained = {k: v + 1 if ".self_attn." in k else v for k, v in trained.items()}
    save_file(trained, tmp_path / "stage1" / "model.safetensors")
    hybrid = _convert(tmp_path, 2, student=tmp_path / "stage1")
    for name, tensor in hybrid.items():
        if ".layers.0.self_attn." in name or ".layers.3.self_attn." in name:
            assert torch.equal(tensor, trained[name])
        elif name in teacher.state_dict():
            assert torch.equal(tensor, teacher.state_dict()[name])


def test_same_seed_same_file_other_seed_other_gates(tmp_path, teacher):
    first, again, other = (
        _convert(tmp_path, 2, f"out{i}", seed=seed) for i, seed in enumerate((1, 1, 2))
    )
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert {name.split(".")[-2] for name in changed} == {"o_gate", "z_proj"}


def test_dtype_is_the_teachers_and_the_folder_is_complete(tmp_path):
    _teacher(tmp_path / "teacher", dtype="bfloat16").bfloat16().save_pretrained(
        tmp_path / "teacher"
    )
    hybrid = _convert(tmp_path, 2)
    assert {tensor.dtype for tensor in hybrid.values()} == {torch.bfloat16}
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["HypeNetForCausalLM"]
    assert written["model_type"] == "hypenet"
    assert written["dtype"] == "bfloat16"
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(("tie_head", "tied"), [("teacher", False), ("config", True)])
def test_an_untied_teachers_head_is_kept_unless_told(tmp_path, tie_head, tied):
    teacher = _teacher(tmp_path / "teacher", tie_word_embeddings=False)
    hybrid = _convert(tmp_path, 2, tie_head=tie_head)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.tie_word_embeddings is tied
    expected = teacher.model.embed_tokens.weight if tied else teacher.lm_head.weight
    assert torch.equal(model.lm_head.weight, expected)
    assert ("lm_head.weight" in hybrid) is not tied


@torch.no_grad()
def test_grouped_linear_heads_and_biases_give_the_same_model(tmp_path):
    _teacher(tmp_path / "teacher", attention_bias=True)
    outputs = []
    for heads in (2, 4):
        config = _config_file(tmp_path, lightning_nkv=heads, attention_bias=True)
        _convert(tmp_path, 2, f"kv{heads}", config)
        outputs.append(AutoModelForCausalLM.from_pretrained(tmp_path / f"kv{heads}"))
    ids = random_ids(1, 30)
    torch.testing.assert_close(outputs[0](ids).logits, outputs[1](ids).logits, rtol=0, atol=1e-4)


def test_shards_load_like_one_file(tmp_path, teacher):
    hybrid = _convert(tmp_path, 2)
    writer = ShardWriter(tmp_path / "out", shard_bytes=20_000)
    (tmp_path / "out" / "model.safetensors").unlink()
    for name, tensor in hybrid.items():
        writer.add(name, tensor)
    writer.close()
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in hybrid.items())


def _refused(tmp_path, message, **options):
    with pytest.raises(UserError, match=message):
        _convert(tmp_path, **({"stage": 2} | options))
    assert not (tmp_path / "out").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_teachers_that_do_not_fit_are_refused(tmp_path, teacher):
    _refused(tmp_path, "vocab_size: .* has 97, but hypenet_2b needs 151936", config="2b")
    config = _config_file(tmp_path, rope_theta=10000)
    _refused(tmp_path, "rope_theta is 10000.0, but the teacher needs 1000000.0", config=config)
    _refused(tmp_path, "3b is neither a HypeNet size", config="3b")
    config = _config_file(tmp_path, lightning_head_dim=8)
    _refused(tmp_path, "lightning_head_dim is 8", config=config)
    with pytest.raises(ValidationError, match="Input should be 1 or 2"):
        _convert(tmp_path, 3)
    _refused(tmp_path, "stage 1 takes no student", stage=1, student=tmp_path / "teacher")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            r"scales positions \(factor 4.0, .*rope_type yarn\).*\n.*remove rope_scaling",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            r"scales positions \(factor 2.0, .*linear.*\)",
        ),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}},
            r"scales positions \(factor 2.0, .*rope_type dynamic\)",
        ),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            r"layers \[1\] have a sliding window.*\n.*use_sliding_window to false",
        ),
    ],
)
def test_what_a_hypenet_cannot_take_over_of_a_teacher_is_named(tmp_path, teacher, changes, said):
    path = tmp_path / "teacher/config.json"
    config = json.loads(path.read_text())
    if "rope_scaling" in changes:  # as published configs of transformers 4 have it
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    path.write_text(json.dumps(config | changes))
    _refused(tmp_path, said)


def test_a_layer_that_becomes_a_lightning_mixer_may_have_a_window(tmp_path, teacher):
    plain = _convert(tmp_path, 2)
    path = tmp_path / "teacher/config.json"
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    window = {"use_sliding_window": True, "sliding_window": 8, "layer_types": kinds}
    path.write_text(json.dumps(json.loads(path.read_text()) | window))
    windowed = _convert(tmp_path, 2, name="windowed")
    assert plain.keys() == windowed.keys()
    assert all(torch.equal(tensor, windowed[name]) for name, tensor in plain.items())


def test_a_rope_scaling_that_scales_nothing_is_taken(tmp_path, teacher):
    path = tmp_path / "teacher/config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    path.write_text(json.dumps(config | {"rope_scaling": None}))
    _convert(tmp_path, 2)
    assert (tmp_path / "out/manifest.json").is_file()


def test_an_existing_folder_is_left_alone(tmp_path, teacher):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="already exists"):
        _convert(tmp_path, 2)
    assert list((tmp_path / "out").iterdir()) == []


def test_pickles_missing_and_foreign_checkpoints_are_refused(tmp_path, teacher):
    weights = load_file(tmp_path / "teacher" / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "teacher" / "model.safetensors")
    _refused(tmp_path, "the teacher has no model.layers.2.mlp.up_proj.weight")
    (tmp_path / "teacher" / "model.safetensors").write_bytes(b"nonsense")
    _refused(tmp_path, "declares a header")
    (tmp_path / "teacher" / "model.safetensors").rename(
        tmp_path / "teacher" / "pytorch_model_fsdp.bin"
    )
    _refused(tmp_path, r"as pickle \(pytorch_model_fsdp.bin\)")
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    save_file(weights, tmp_path / "teacher" / "model.safetensors")
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(config | {"model_type": "rwkv9"}))
    _refused(tmp_path, "is a model of type rwkv9")
    (tmp_path / "teacher" / "config.json").write_text("{")
    _refused(tmp_path, "config.json: not JSON")
    (tmp_path / "teacher" / "config.json").unlink()
    _refused(tmp_path, "config.json: is missing")


def test_the_command_writes_what_verify_accepts(tmp_path, teacher, capsys):
    config = str(_config_file(tmp_path))
    common = ["convert", "--teacher", str(tmp_path / "teacher"), "--size", config]
    student, hybrid = str(tmp_path / "student"), str(tmp_path / "hybrid")
    assert main([*common, "--stage", "1", "--out", student]) == 0
    assert "softmax attention in none" in capsys.readouterr().out
    assert main([*common, "--stage", "2", "--student", student, "--out", hybrid]) == 0
    assert "softmax attention in 1, 2; tied head" in capsys.readouterr().out
    parents = json.loads((tmp_path / "hybrid" / "manifest.json").read_text())["parents"]
    assert [(p["role"], p["location"]) for p in parents] == [
        ("teacher", str(tmp_path / "teacher")),
        ("student", student),
    ]
    assert main(["verify", hybrid]) == 0
    assert main([*common, "--stage", "2", "--out", hybrid]) == 2
    assert "already exists" in capsys.readouterr().err
    assert AutoModelForCausalLM.from_pretrained(hybrid).config.softmax_layers == (1, 2)
