"""Whatever stands in a config.json, reading it ends in a map or in one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from amnesia_bench.errors import UserError
from amnesia_bench.weights.attention_map import attention_map
from tests.support import pico
from tests.support.pico import PICOS

JUNK: tuple[Any, ...] = (
    None, "x", -1, 0, 7, 2.5, [], ["x"], [0, 99], {"x": 1}, {"0": {"head_dim": "b"}}
)  # fmt: skip


@pytest.mark.parametrize("family", PICOS)
def test_junk_under_any_key_is_a_map_or_one_message(family: str, tmp_path: Path) -> None:
    pico.build(family, tmp_path, seed=0)
    config = json.loads((tmp_path / "config.json").read_text())
    shapes = {name: tuple(t.shape) for name, t in load_file(tmp_path / "model.safetensors").items()}
    refused = 0
    for changed in _changed(config):
        try:
            attention_map(changed, shapes)
        except UserError:
            refused += 1
    assert refused > 20


def _changed(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Every key in turn, of the wrapper and of the decoder, with every piece of junk."""
    extra = ("per_layer_config", "rope_scaling", "no_rope_layers", "sliding_window", "head_dim")
    found = [{**config, key: junk} for key in {*config, *extra} for junk in JUNK]
    inner = config.get("text_config")
    if isinstance(inner, dict):
        found += [{**config, "text_config": changed} for changed in _changed(inner)]
    return found
