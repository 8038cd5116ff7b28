"""The config of Jet-Nemotron: NVlabs' keys come in and go out; a mistake is named by its key."""

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from amnesia_bench.config.load import load_model
from amnesia_bench.costs.model_shape import named_shape
from amnesia_bench.errors import UserError
from amnesia_bench.modeling import JetNemotronConfig, JetNemotronForCausalLM
from tests.support.jet import JET_BLOCK, JET_PICO, JET_SHAPES, jet_model
from tests.support.shared import shared_path


def test_the_published_config_has_as_many_parameters_as_is_estimated() -> None:
    values: dict[str, Any] = dict(load_model("jet_nemotron_2b").values)
    with torch.device("meta"):
        model = JetNemotronForCausalLM(JetNemotronConfig.from_dict(values))
    assert model.num_parameters() == named_shape("jet_nemotron_2b").parameters == 1_964_806_208
    assert model.config.softmax_layers == (14, 19)
    assert [i for i, kind in enumerate(model.config.layer_types) if "sliding" in kind] == [20, 21]
    assert model.config.jet_block.value_dim == 256
    assert model.config.window_size == 1152


def test_the_words_of_the_file_come_back(tmp_path: Any) -> None:
    config = JetNemotronConfig.from_dict(JET_PICO)
    assert config.layer_types == [
        "linear_attention",
        "full_attention",
        "sliding_attention",
        "linear_attention",
    ]
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert {key: written.get(key) for key in JET_PICO} == JET_PICO
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is JetNemotronConfig
    assert again.layer_types == config.layer_types
    assert again.jet_block == config.jet_block


def test_transformers_names_of_layers_are_understood() -> None:
    names = ["linear_attention", "full_attention", "sliding_attention", "linear_attention"]
    config = JetNemotronConfig.from_dict(JET_PICO | {"layer_types": names})
    assert config.to_dict()["layer_types"] == JET_PICO["layer_types"]


def test_the_golden_config_is_read_as_published() -> None:
    folder = shared_path("golden", "jet_nemotron_pico")
    config = AutoConfig.from_pretrained(folder)
    assert config.jet_block.norm_eps == 1e-5
    assert config.jet_block.value_dim == 64
    assert config.rope_parameters == {"rope_theta": 1000000.0, "rope_type": "default"}


def _block(**changes: Any) -> dict[str, Any]:
    return {"efficient_attention_config": {"jet": JET_BLOCK | changes, "swa": {"window_size": 9}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["jet", "attn", "mamba", "jet"]}, r"layer_types\[2\] is 'mamba'"),
        ({"layer_types": ["jet"]}, "layer_types has 1 entries, but num_hidden_layers is 4"),
        ({"layer_types": "['attn'] * 4"}, "layer_types is .* not a list"),
        ({"efficient_attention_config": None}, "jet is None, but layer_types has jet layers"),
        ({"efficient_attention_config": {"jet": JET_BLOCK}}, "swa is None"),
        ({"efficient_attention_config": {"gla": {}}}, "efficient_attention_config.gla is not"),
        (_block(norm_eps="small"), "jet.norm_eps is 'small'"),
        (_block(num_heads=0), "jet.num_heads is 0"),
        (_block(conv_size=2.5), "jet.conv_size is 2.5"),
        (_block(expand_v=1.3), "head_dim 8 times expand_v 1.3 is 10.4"),
        (_block(feature_map="elu"), "jet.feature_map is not a key of a JetBlock"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) is not a multiple"),
        ({"hidden_size": 34}, r"hidden_size \(34\) is not a multiple"),
        ({"use_mrope": True}, "use_mrope is true"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"hidden_act": "nothing"}, "hidden_act is 'nothing'"),
    ],
)
def test_a_mistake_is_named_by_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        JetNemotronConfig.from_dict(JET_PICO | changes)


@pytest.mark.parametrize("shape", ["base", "wide_heads_untied"])
def test_a_model_comes_back_from_its_folder(tmp_path: Any, shape: str) -> None:
    model = jet_model(shape)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("shape", ["base", "seven_taps"])
def test_bfloat16_stays_close(shape: str) -> None:
    model, ids = jet_model(shape), torch.arange(3, 90)[None]
    with torch.no_grad():
        precise = model(ids).logits
        rough = model.to(torch.bfloat16)(ids).logits
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - precise).norm() < 0.3 * precise.norm()  # random weights amplify it


def test_new_models_get_decays_in_the_authors_range() -> None:
    torch.manual_seed(0)
    model = JetNemotronForCausalLM(JetNemotronConfig.from_dict(JET_SHAPES["jet_only"]))
    mixer = model.model.layers[0].self_attn
    assert bool((mixer.A_log.exp() <= 16.01).all())
    step = torch.nn.functional.softplus(mixer.dt_bias)
    assert bool(((step > 0.9e-3) & (step < 0.11)).all())


def test_tensors_that_do_not_fit_are_refused(tmp_path: Any) -> None:
    jet_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | _block(num_heads=2)))
    with pytest.raises(UserError, match=r"A_log has shape \[3\], but config.json implies \[2\]"):
        JetNemotronForCausalLM.from_pretrained(tmp_path)
