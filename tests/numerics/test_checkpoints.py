"""Loading and saving: exact round trips, no silent gaps, frequencies never left to chance."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from amnesia_bench.errors import UserError
from amnesia_bench.modeling import HypeNetForCausalLM, HypeNetModel, alibi_log_decay
from tests.numerics.conftest import GOLDEN, SHAPES, random_ids


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_save_and_load_again(make_model, tmp_path, shape):
    model, ids = make_model(shape), random_ids(1, 30)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {
        "_name_or_path": "",
        "dtype": "float32",
        "architectures": ["HypeNetForCausalLM"],
    }


def test_official_checkpoint_is_written_back_bit_for_bit(tmp_path):
    AutoModelForCausalLM.from_pretrained(GOLDEN).save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    official = load_file(GOLDEN / "model.safetensors")
    assert written.keys() == official.keys()
    assert all(torch.equal(written[name], official[name]) for name in official)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("late", [False, True])
def test_frequencies_and_decays_are_exact_and_float32_in_every_dtype(dtype, late):
    model = AutoModelForCausalLM.from_pretrained(GOLDEN, dtype=torch.float32 if late else dtype)
    if late:
        model = model.to(dtype)
    rotary = model.model.lightning_rotary_emb
    expected = 1.0 / 1000000 ** (torch.arange(0, 16, 2).float() / 16)
    for buffer in (rotary.inv_freq, rotary.original_inv_freq):
        assert buffer.dtype == torch.float32
        assert torch.equal(buffer, expected)
    for layer in (0, 2):
        decay = model.model.layers[layer].self_attn.log_decay
        assert decay.dtype == torch.float32
        assert torch.equal(decay, alibi_log_decay(4))
    assert model.lm_head.weight.dtype == dtype


def test_a_model_is_built_on_the_device_of_the_context():
    with torch.device("meta"):
        model = HypeNetForCausalLM(AutoConfig.from_pretrained(GOLDEN))
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@torch.no_grad()
def test_bfloat16_runs_close_to_float32():
    model = AutoModelForCausalLM.from_pretrained(GOLDEN)
    ids = load_file(GOLDEN / "reference.safetensors")["input_ids"]
    exact = model(ids).logits
    rounded = model.to(torch.bfloat16)(ids).logits.float()
    assert torch.nn.functional.cosine_similarity(rounded, exact, dim=-1).min() > 0.99


def test_weights_are_initialised_like_qwen3():
    config = AutoConfig.from_pretrained(GOLDEN)
    torch.manual_seed(0)
    model = HypeNetForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter))
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def _edited(tmp_path, edit):
    weights = load_file(GOLDEN / "model.safetensors")
    edit(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((GOLDEN / "config.json").read_text())
    return tmp_path


def test_missing_and_surplus_tensors_are_refused_by_name(tmp_path):
    folder = _edited(tmp_path, lambda w: w.pop("model.layers.2.self_attn.z_proj.weight"))
    with pytest.raises(UserError, match=r"missing tensor model.layers.2.self_attn.z_proj.weight"):
        AutoModelForCausalLM.from_pretrained(folder)
    name = "model.layers.1.self_attn.z_proj.weight"
    _edited(tmp_path, lambda w: w.update({name: torch.zeros(64, 64)}))
    with pytest.raises(UserError, match=f"unexpected tensor {name}"):
        HypeNetForCausalLM.from_pretrained(folder)
    with pytest.raises(UserError, match=f"unexpected tensor {name}"):
        AutoModel.from_pretrained(folder)


def test_a_head_missing_from_an_untied_checkpoint_is_refused(tmp_path):
    folder = _edited(tmp_path, lambda w: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(UserError, match=r"missing tensor lm_head.weight"):
        AutoModelForCausalLM.from_pretrained(folder)
    assert AutoModel.from_pretrained(folder).config.tie_word_embeddings is False


def test_wrong_shapes_are_refused_by_name(tmp_path):
    name = "model.layers.1.self_attn.k_proj.weight"
    folder = _edited(tmp_path, lambda w: w.update({name: torch.zeros(64, 64)}))
    with pytest.raises(UserError, match=rf"{name} has shape \[64, 64\], .* \[32, 64\]"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_tied_checkpoint_that_also_holds_its_head_loads(tmp_path):
    def add_head(weights):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()

    model = AutoModelForCausalLM.from_pretrained(_edited(tmp_path, add_head))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_loading_info_is_still_to_be_had():
    model, info = AutoModelForCausalLM.from_pretrained(GOLDEN, output_loading_info=True)
    assert isinstance(model, HypeNetForCausalLM)
    assert not info["missing_keys"]
    assert isinstance(AutoModel.from_pretrained(GOLDEN), HypeNetModel)


def test_a_folder_that_carries_its_code_loads_without_this_package(tmp_path):
    script = """
import sys, torch
from safetensors.torch import save_file
from amnesia_bench.modeling import HypeNetConfig, HypeNetForCausalLM
HypeNetConfig.register_for_auto_class()
HypeNetForCausalLM.register_for_auto_class("AutoModelForCausalLM")
model = HypeNetForCausalLM.from_pretrained(sys.argv[1])
model.save_pretrained(sys.argv[2])
save_file({"logits": model(torch.arange(40)[None]).logits.detach()}, sys.argv[2] + "/expected")
"""
    subprocess.run([sys.executable, "-c", script, str(GOLDEN), str(tmp_path)], check=True)
    stranger = """
import sys, torch
sys.modules["amnesia_bench"] = None
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules"), type(model)
logits = load_file(sys.argv[1] + "/expected")["logits"]
assert torch.equal(model(torch.arange(40)[None]).logits, logits)
"""
    loaded = subprocess.run(
        [sys.executable, "-c", stranger, str(tmp_path)],
        capture_output=True,
        text=True,
        env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": ""},
    )
    assert loaded.returncode == 0, loaded.stderr
