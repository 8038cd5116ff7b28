"""The config: official keys in, checked and typed inside, official keys out."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig

from amnesia_bench.errors import UserError
from amnesia_bench.modeling import HypeNetConfig, HypeNetForCausalLM
from amnesia_bench.modeling.named_configs import load_model_config

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "hypenet_tiny"
OFFICIAL = json.loads((GOLDEN / "config.json").read_text())


def _with(**changes: object) -> HypeNetConfig:
    return HypeNetConfig(**{k: v for k, v in OFFICIAL.items() if k != "model_type"} | changes)


def test_layer_types_follow_mixer_types():
    config = _with(mixer_types=["attn", "lightning_attn", "lightning-attn", "attn"])
    assert config.layer_types == [
        "full_attention",
        "linear_attention",
        "linear_attention",
        "full_attention",
    ]
    assert config.softmax_layers == (0, 3)


def test_defaults_of_the_official_format():
    config = HypeNetConfig(num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=4)
    assert config.mixer_types == ["attn", "attn"]
    assert (config.lightning_nh, config.lightning_nkv, config.lightning_head_dim) == (8, 4, 128)
    assert config.rope_parameters["rope_theta"] == 10000
    assert config.attn_logit_scale_a is None


def test_layer_types_follow_changes_of_mixer_types():
    config = AutoConfig.from_pretrained(GOLDEN, mixer_types=["attn"] * 4)
    assert config.layer_types == ["full_attention"] * 4
    config.mixer_types = ["attn", "lightning-attn", "attn", "attn"]
    assert config.layer_types[1] == "linear_attention"
    assert _with(layer_types=_with().layer_types).softmax_layers == (1, 3)


@pytest.mark.parametrize(
    ("changes", "a", "constant"),
    [
        ({"attn_logits_scaling": "hype 400"}, 400.0, None),
        ({"attn_logit_scale_a": 400}, 400, None),
        ({"attn_logit_multiplier": 1.5}, None, 1.5),
        ({"attn_logits_scaling": None}, None, None),
    ],
)
def test_keys_given_to_from_pretrained_win_and_are_checked(tmp_path, changes, a, constant):
    text = json.dumps(OFFICIAL | {"attn_logits_scaling": "hype 500"})
    (tmp_path / "config.json").write_text(text)
    config = AutoConfig.from_pretrained(tmp_path, **changes)
    assert (config.attn_logit_scale_a, config.attn_logit_multiplier) == (a, constant)
    with pytest.raises(UserError, match=r"attn_logit_scale_a is 0\.5"):
        AutoConfig.from_pretrained(tmp_path, attn_logit_scale_a=0.5)
    with pytest.raises(UserError, match="mixer_types has 1 entries"):
        AutoConfig.from_pretrained(tmp_path, mixer_types=["attn"])


def _written(tmp_path, config):
    config.save_pretrained(tmp_path)
    return json.loads((tmp_path / "config.json").read_text())


def test_an_official_file_comes_back_key_by_key(tmp_path):
    written = _written(tmp_path, AutoConfig.from_pretrained(GOLDEN))
    changed = {key for key in OFFICIAL if written.get(key, "absent") != OFFICIAL[key]}
    # transformers' own: its version, and its copy of rope_theta.
    assert changed <= {"transformers_version", "rope_parameters"}
    assert not {"layer_types", "attn_logit_scale_a", "attn_logit_multiplier"} & set(written)


@pytest.mark.parametrize(
    ("text", "a", "constant"),
    [
        ("hype 500", 500.0, None),
        ("hype 500.0", 500.0, None),
        ("hype", 362.0, None),
        (1.5, None, 1.5),
        (None, None, None),
    ],
)
def test_logit_scale_is_a_number_inside_and_its_text_outside(tmp_path, text, a, constant):
    (tmp_path / "config.json").write_text(json.dumps(OFFICIAL | {"attn_logits_scaling": text}))
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.attn_logit_scale_a, config.attn_logit_multiplier) == (a, constant)
    written = _written(tmp_path / "again", config)
    assert written["attn_logits_scaling"] == text
    again = AutoConfig.from_pretrained(tmp_path / "again")
    assert (again.attn_logit_scale_a, again.attn_logit_multiplier) == (a, constant)


def test_a_changed_number_changes_the_text(tmp_path):
    config = _with(attn_logits_scaling="hype 500")
    config.attn_logit_scale_a = 300.0
    assert _written(tmp_path, config)["attn_logits_scaling"] == "hype 300"
    config.attn_logits_scaling = "hype 200"
    assert config.attn_logit_scale_a == 200.0
    assert _with(attn_logit_scale_a=500).attn_logits_scaling == "hype 500"


def test_the_attention_function_of_a_file_is_not_taken_over(tmp_path):
    text = json.dumps(OFFICIAL | {"_attn_implementation": "flash_attention_2"})
    (tmp_path / "config.json").write_text(text)
    config = AutoConfig.from_pretrained(tmp_path)
    assert HypeNetForCausalLM(config).config._attn_implementation == "sdpa"
    config = AutoConfig.from_pretrained(tmp_path, attn_implementation="eager")
    assert HypeNetForCausalLM(config).config._attn_implementation == "eager"


def test_scaled_rope_is_written_the_old_way(tmp_path):
    scaled = {"rope_type": "linear", "factor": 2.0}
    config = _with(rope_scaling=scaled, rope_parameters=None)
    written = _written(tmp_path, config)
    assert written["rope_theta"] == 1000000
    assert written["rope_scaling"] == scaled
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == scaled | {"rope_theta": 1000000}


def test_a_dict_that_makes_a_config_stays_as_it_was():
    values = {"rope_parameters": {}, "rope_theta": 500.0}
    assert HypeNetConfig(**values).rope_parameters["rope_theta"] == 500.0
    assert values == {"rope_parameters": {}, "rope_theta": 500.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer_types": ["attn", "mamba9", "attn", "attn"]}, r"mixer_types\[1\] is 'mamba9'"),
        ({"mixer_types": ["attn", "attn", "attn", "gdn"]}, r"mixer_types\[3\] is 'gdn'"),
        ({"mixer_types": ["attn"]}, "mixer_types has 1 entries, but num_hidden_layers is 4"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(4\) .* num_key_value_heads \(3\)"),
        ({"lightning_nkv": 3}, r"lightning_nh \(4\) is not a multiple of lightning_nkv \(3\)"),
        ({"head_dim": None, "hidden_size": 65}, r"hidden_size \(65\) .* num_attention_heads"),
        ({"lightning_head_dim": 15}, "lightning_head_dim is 15; RoPE rotates pairs"),
        ({"lightning_nh": -4}, "lightning_nh is -4; it must be positive"),
        ({"lightning_nh": 0}, "lightning_nh is 0; it must be positive"),
        ({"lightning_nkv": 0}, "lightning_nkv is 0; it must be positive"),
        ({"lightning_head_dim": 0}, "lightning_head_dim is 0; it must be positive"),
        ({"intermediate_size": 0}, "intermediate_size is 0; it must be positive"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0; it must be positive"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; it must be positive"),
        ({"hidden_act": "sliu"}, "hidden_act is 'sliu'"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"rope_theta": None}, "rope_theta is None"),
        ({"rope_scaling": {"rope_type": "yarm"}}, "rope_scaling has rope_type 'yarm'"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types is .* mixer_types implies"),
        ({"attn_logits_scaling": float("nan")}, "attn_logits_scaling is nan"),
        ({"lightning_scale": "2/d"}, "lightning_scale is '2/d'"),
        ({"lightning_use_short_conv": True}, "lightning_use_short_conv is true"),
        ({"attn_logits_scaling": "hype five"}, "attn_logits_scaling is 'hype five'"),
        ({"attn_logits_scaling": "yarn 500"}, "attn_logits_scaling is 'yarn 500'"),
        ({"attn_logits_scaling": 500}, "attn_logits_scaling is 500"),
        ({"attn_logits_scaling": "hype 1"}, "attn_logit_scale_a is 1.0"),
        ({"attn_logit_scale_a": 5.0, "attn_logit_multiplier": 2.0}, "are both set"),
    ],
)
def test_bad_values_are_refused_by_key(changes, message):
    with pytest.raises(UserError, match=message) as error:
        _with(**changes)
    assert isinstance(error.value, ValueError)  # what callers of transformers catch


@pytest.mark.parametrize(
    "changes", [{"attn_use_rope": "no"}, {"num_hidden_layers": "4"}, {"rms_norm_eps": "1e-6"}]
)
def test_values_of_another_type_are_refused_by_key(changes):
    with pytest.raises(StrictDataclassFieldValidationError, match=next(iter(changes))):
        _with(**changes)


def _parameters(config: HypeNetConfig) -> int:
    with torch.device("meta"):
        return HypeNetForCausalLM(config).num_parameters()


@pytest.mark.parametrize(
    ("size", "billions", "softmax"),
    [
        ("2b", 1.926, (2, 3, 6, 8, 9, 21, 25)),
        ("5b", 4.825, (0, 1, 7, 14, 15, 22, 24, 31, 33)),
        ("9b", 8.852, (1, 2, 4, 6, 7, 10, 24, 33, 34)),
    ],
)
def test_published_sizes(size, billions, softmax):
    config = load_model_config(size)
    assert config.softmax_layers == softmax
    assert config.tie_word_embeddings
    assert round(_parameters(config) / 1e9, 3) == billions


def test_9b_with_the_teachers_head():
    config = load_model_config("9b")
    config.tie_word_embeddings = False
    assert round(_parameters(config) / 1e9, 3) == 9.474


def test_tiny_is_the_golden_checkpoint():
    tiny, golden = load_model_config("tiny"), AutoConfig.from_pretrained(GOLDEN)
    differing = {key for key, value in tiny.to_dict().items() if golden.to_dict().get(key) != value}
    assert differing <= {"architectures", "dtype", "transformers_version", "_name_or_path"}
    assert _parameters(tiny) == 213_888


def test_config_files_are_read_and_typos_refused(tmp_path):
    assert load_model_config(GOLDEN / "config.json").lightning_nh == 4
    typo = tmp_path / "model.yaml"
    typo.write_text("num_hidden_layer: 4\n")
    with pytest.raises(UserError, match="num_hidden_layer is not a key"):
        load_model_config(typo)
    typo.write_text("a: [1,\n")
    with pytest.raises(UserError, match="is not YAML"):
        load_model_config(typo)
    typo.write_text("- 1\n")
    with pytest.raises(UserError, match="does not contain keys and values"):
        load_model_config(typo)
    with pytest.raises(UserError, match="7b is neither a HypeNet size"):
        load_model_config("7b")
