"""Which differences between two ropes refuse a restore, which are a note, and which are none."""

from pathlib import Path
from typing import Any

import pytest

from amnesia_bench.errors import UserError
from amnesia_bench.surgery.rope import check_rope
from amnesia_bench.weights.attention_map import ROUTING, attention_map

QWEN: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
GEMMA = QWEN | {"model_type": "gemma3_text", "num_key_value_heads": 2, "head_dim": 8}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
MROPE = {"mrope_section": [2, 1, 1], "mrope_interleaved": True}


def rope(config: dict[str, Any]) -> dict[str, object]:
    names = {"q_proj": (16, 16), "k_proj": (16, 16)}
    shapes = {f"layers.0.self_attn.{name}.weight": shape for name, shape in names.items()}
    if config["model_type"] == "qwen2":
        shapes |= {f"layers.0.self_attn.{name}.bias": (16,) for name in names}
    value = dict(attention_map(config, shapes, ROUTING).routing)["rope"]
    assert isinstance(value, dict)
    return value


def compare(pre: dict[str, Any], post: dict[str, Any]) -> list[str]:
    return check_rope(Path("PRE"), Path("POST"), (rope(pre), rope(post)))


def with_rope(config: dict[str, Any], **values: Any) -> dict[str, Any]:
    return config | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4} | values}


@pytest.mark.parametrize(
    ("pre", "post"),
    [
        (QWEN, with_rope(QWEN)),
        (QWEN | {"rope_theta": 1_000_000}, with_rope(QWEN, rope_theta=1e6)),
        (QWEN | {"rope_scaling": YARN}, with_rope(QWEN, **{**YARN, "rope_type": "yarn"})),
        (QWEN | {"rope_scaling": None}, QWEN | {"max_position_embeddings": 4096}),
    ],
)
def test_one_rope_in_two_spellings_is_no_difference(
    pre: dict[str, Any], post: dict[str, Any]
) -> None:
    assert compare(pre, post) == compare(post, pre) == []


@pytest.mark.parametrize(
    "scaled",
    [
        QWEN | {"rope_scaling": YARN},
        with_rope(QWEN, **{**YARN, "rope_type": "yarn"}),
        QWEN | {"rope_scaling": YARN | {"attention_factor": 1.2, "beta_fast": 16}},
        QWEN | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    ],
)
def test_a_scaling_added_for_serving_is_a_note(scaled: dict[str, Any]) -> None:
    for pre, post in ((QWEN, scaled), (scaled, QWEN)):
        (note,) = compare(pre, post)
        assert "serving" in note
        assert f"pre {rope(pre)['rope_type']!r}, post {rope(post)['rope_type']!r}" in note


@pytest.mark.parametrize(
    ("pre", "post"),
    [
        (with_rope(QWEN, **MROPE), QWEN),
        (with_rope(QWEN, **MROPE), with_rope(QWEN, mrope_section=[1, 1, 2])),
        (QWEN | {"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}, QWEN),
    ],
)
def test_sections_for_images_are_a_note(pre: dict[str, Any], post: dict[str, Any]) -> None:
    for a, b in ((pre, post), (post, pre)):
        (note,) = compare(a, b)
        assert "mrope_section" in note


@pytest.mark.parametrize(
    ("pre", "post", "says"),
    [
        (QWEN, with_rope(QWEN, rope_theta=3e5), "rope_theta: pre 10000.0, post 300000.0"),
        (
            QWEN,
            QWEN | {"rope_theta": 3e5, "rope_scaling": YARN},
            "rope_theta: pre 10000.0, post 300000.0",
        ),
        (
            QWEN | {"rope_scaling": YARN},
            QWEN | {"rope_scaling": YARN | {"factor": 8.0}},
            "factor: pre 4.0, post 8.0",
        ),
        (QWEN, with_rope(QWEN, partial_rotary_factor=0.5), "partial_rotary_factor: pre 1.0"),
        (QWEN, QWEN | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "post 'linear'"),
        (GEMMA, GEMMA | {"rope_local_base_freq": 5e3}, "sliding_attention.rope_theta: pre 10000.0"),
    ],
)
def test_another_rotation_is_refused_key_by_key(
    pre: dict[str, Any], post: dict[str, Any], says: str
) -> None:
    with pytest.raises(UserError, match="Different rope") as refused:
        compare(pre, post)
    assert says in refused.value.what
    assert "wrong distances" in refused.value.what
    assert "(pre PRE, post POST)" in refused.value.what
    assert refused.value.hint is not None
    assert "--pre" in refused.value.hint


def test_of_two_kinds_of_layers_only_the_scaled_one_is_excused() -> None:
    scaled = GEMMA | {"rope_scaling": YARN, "rope_local_base_freq": 5e3}
    with pytest.raises(UserError) as refused:
        compare(GEMMA, scaled)
    assert "sliding_attention.rope_theta" in refused.value.what
    assert "full_attention" not in refused.value.what


def test_a_model_without_rope_is_another_model() -> None:
    pre, post = Path("PRE"), Path("POST")
    assert check_rope(pre, post, (None, None)) == []
    with pytest.raises(UserError, match="rotary embedding: pre none, post "):
        check_rope(pre, post, (None, {"rope_theta": 1.0}))
