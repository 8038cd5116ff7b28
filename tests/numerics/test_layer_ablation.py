"""Taking a layer out by a hook is what zeros in its output projection would do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amnesia_bench.errors import UserError
from amnesia_bench.lm_eval_bridge.ranking import output_projections, without_attention
from amnesia_bench.weights.checkpoint import open_checkpoint
from tests.support import checkpoints
from tests.support.tiny_models import tiny_model

IDS = torch.arange(3, 23).unsqueeze(0)


@pytest.mark.parametrize("name", ["qwen2", "mistral", "hypenet"])
@torch.inference_mode()
def test_an_ablated_layer_adds_nothing_and_comes_back(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    model.save_pretrained(tmp_path / "model")
    projections = output_projections(open_checkpoint(tmp_path / "model"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    whole = model(IDS).logits
    for layer, projection in projections.items():
        with without_attention(model, projection):
            ablated = model(IDS).logits
        zeroed = tiny_model(name)
        zeroed.get_submodule(projection).weight.zero_()
        assert f"layers.{layer}." in projection
        assert torch.equal(ablated, zeroed(IDS).logits)
        assert not torch.allclose(ablated, whole)
    assert torch.equal(model(IDS).logits, whole)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_only_softmax_layers_over_the_whole_context_are_ranked(tmp_path: Path) -> None:
    folder = checkpoints.save(tmp_path / "hypenet", checkpoints.random_model(0))
    assert tuple(output_projections(open_checkpoint(folder))) == checkpoints.SOFTMAX_LAYERS


def test_a_model_without_the_module_is_refused() -> None:
    with (
        pytest.raises(UserError, match="has no module model"),
        without_attention(tiny_model("qwen2"), "model.layers.9.self_attn.o_proj"),
    ):
        pass
