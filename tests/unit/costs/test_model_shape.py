"""Sizes read from a config alone are those of the model that is built from it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from amnesia_bench.config.files import options
from amnesia_bench.config.load import load_model_file
from amnesia_bench.costs.model_shape import named_shape, read_model_shape
from amnesia_bench.errors import UserError

# What the model cards say, in billions.
PUBLISHED = {
    "qwen3_0_6b": 0.596,
    "qwen3_1_7b": 1.72,
    "qwen3_4b": 4.02,
    "qwen3_8b": 8.19,
    "qwen2_5_3b": 3.09,
    "qwen2_5_7b": 7.62,
    "mistral_7b": 7.25,
    "gemma3_270m": 0.268,
}


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_sizes_come_out_and_are_those_of_transformers(model: str) -> None:
    values = load_model_file(model)
    config = AutoConfig.for_model(str(values.pop("model_type")), **values)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    shape = named_shape(model)
    assert shape.parameters == built.num_parameters()
    assert shape.parameters / 1e9 == pytest.approx(PUBLISHED[model], abs=0.005)


def test_every_model_has_a_shape() -> None:
    for model in options("model"):
        assert named_shape(model).parameters > 0


def test_a_jet_nemotron_is_counted_tensor_by_tensor() -> None:
    shape = named_shape("jet_nemotron_2b")
    assert (shape.linear_layers, shape.softmax_layers, shape.sliding_layers) == (24, 2, 2)
    hidden, keys, values = 1536, 12 * 96, 12 * 256
    jet = [
        2 * hidden * keys,  # q, k
        3 * hidden * values,  # v, gate, output
        2 * hidden * 12,  # a, b
        12 + 12,  # A_log, dt_bias
        hidden * 384,  # w1 of the kernel generator: 3,072 / 8
        384 * values * 4 + values * 4,  # its w2 and bias: four taps
        256,  # norm
    ]
    softmax = 2 * hidden * hidden + 2 * hidden * 256 + hidden + 2 * 256
    rest = 3 * hidden * 8960 + 2 * hidden
    total = 24 * sum(jet) + 4 * softmax + 28 * rest + hidden + 151936 * hidden
    assert shape.parameters == total == 1_964_806_208
    # Of a window a token sees all, as soon as there are that many.
    grows = shape.mixing_flops(2**18) - shape.mixing_flops(2**17)
    assert grows == pytest.approx(2 * 4 * hidden * 2**17 / 2, rel=1e-3)


# PFLOP to read a prompt of 32,768 and of 262,144 tokens: counted apart from this code.
@pytest.mark.parametrize(
    ("model", "short", "long"),
    [
        ("hypenet_2b", 0.14, 2.82),
        ("hypenet_5b", 0.37, 7.41),
        ("hypenet_9b", 0.62, 9.40),
        ("jet_nemotron_2b", 0.12, 1.31),
        ("qwen2_5_7b", 0.64, 17.2),
        ("mistral_7b", 0.74, 21.7),
    ],
)
def test_reading_a_prompt_takes_what_was_counted_before(
    model: str, short: float, long: float
) -> None:
    shape = named_shape(model)
    for tokens, expected in ((2**15, short), (2**18, long)):
        flops = tokens * (2 * shape.body + shape.mixing_flops(tokens))
        assert flops / 1e15 == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba': the size of such a model"),
        ({"layer_types": "jet"}, "layer_types should be a list of strings"),
        ({"efficient_attention_config": {}}, "efficient_attention_config.jet.head_dim should be"),
    ],
)
def test_what_cannot_be_counted_is_named(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_model_shape(load_model_file("jet_nemotron_2b") | changes)


def test_a_factor_that_is_no_positive_number_is_named() -> None:
    values = load_model_file("jet_nemotron_2b")
    for factor in ("2", -1, None, True):
        block = {"num_heads": 12, "head_dim": 96, "expand_v": factor}
        with pytest.raises(UserError, match="expand_v should be a positive number"):
            read_model_shape(values | {"efficient_attention_config": {"jet": block}})
