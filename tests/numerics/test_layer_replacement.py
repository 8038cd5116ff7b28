"""A teacher with one linear layer in memory is the model that a conversion would write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

import amnesia_bench as ab
from amnesia_bench.conversion.layer_replacement import ReplaceableLayers, replacement_request
from amnesia_bench.errors import UserError
from amnesia_bench.requests.checkpoints import ConvertRequest
from tests.support.layer_pair import LAYERS, align, write_pair, write_shape

CPU = torch.device("cpu")
IDS = torch.arange(3, 83).unsqueeze(0)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


@torch.inference_mode()
def logits(model: torch.nn.Module) -> Tensor:
    result: Tensor = model(IDS).logits
    return result


def test_a_replaced_layer_gives_the_logits_of_the_converted_hybrid(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    layers = ReplaceableLayers(*pair, CPU)
    before = {name: value.clone() for name, value in layers.module.state_dict().items()}
    original = logits(layers.module)
    teacher = Qwen3ForCausalLM.from_pretrained(pair[0]).eval()
    assert torch.allclose(original, logits(teacher), atol=1e-4)
    assert layers.num_layers == LAYERS
    seen = [original]
    for layer in range(LAYERS):
        ab.convert(replacement_request(*pair, layer), tmp_path / str(layer))
        hybrid = AutoModelForCausalLM.from_pretrained(tmp_path / str(layer)).eval()
        assert hybrid.config.softmax_layers == tuple(i for i in range(LAYERS) if i != layer)
        with layers.replaced(layer):
            assert layers.module.config.mixer_types == hybrid.config.mixer_types
            replaced = logits(layers.module)
        assert torch.equal(replaced, logits(hybrid))
        assert not any(torch.allclose(replaced, other, atol=1e-3) for other in seen)
        seen.append(replaced)
    assert torch.equal(logits(layers.module), original)
    after = layers.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_original_comes_back_after_an_error(pair: tuple[Path, Path]) -> None:
    layers = ReplaceableLayers(*pair, CPU)
    original = logits(layers.module)
    with pytest.raises(KeyboardInterrupt), layers.replaced(1):
        raise KeyboardInterrupt
    assert torch.equal(logits(layers.module), original)


def test_a_student_of_another_teacher_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other, _ = write_pair(tmp_path / "other", seed=7)
    with pytest.raises(UserError, match=r"is not a stage-1 student of .* differs") as caught:
        ReplaceableLayers(other, pair[1], CPU)
    assert "from which the student was converted" in str(caught.value.hint)


def test_a_student_whose_mlp_was_trained_is_refused(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    file = tmp_path / "student" / "model.safetensors"
    file.parent.mkdir()
    (file.parent / "config.json").write_bytes((pair[1] / "config.json").read_bytes())
    weights = load_file(pair[1] / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] += 1
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.layers\.2\.mlp\.up_proj\.weight differs"):
        ReplaceableLayers(pair[0], file.parent, CPU)


def test_a_student_that_is_not_all_linear_is_refused(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    shape = ab.load_hypenet(write_shape(tmp_path))
    hybrid = tmp_path / "hybrid"
    ab.convert(ConvertRequest(teacher=pair[0], model=shape, stage=2), hybrid)
    with pytest.raises(UserError, match="layer 1 has softmax attention"):
        ReplaceableLayers(pair[0], hybrid, CPU)
    with pytest.raises(UserError, match="is a model of type qwen3, not a stage-1 student"):
        ReplaceableLayers(pair[0], pair[0], CPU)


def test_a_student_with_other_heads_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = json.loads((pair[1] / "config.json").read_text())
    student = tmp_path / "student"
    student.mkdir()
    (student / "model.safetensors").write_bytes((pair[1] / "model.safetensors").read_bytes())
    (student / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 4}))
    with pytest.raises(UserError, match=r"num_key_value_heads: the teacher .* has 2"):
        ReplaceableLayers(pair[0], student, CPU)


def test_rounded_weights_are_those_of_the_same_teacher(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    rounded = tmp_path / "rounded"
    align(pair[1], rounded, dtype=torch.bfloat16)
    layers = ReplaceableLayers(pair[0], rounded, CPU)
    with layers.replaced(0):
        assert layers.module.model.layers[0].self_attn.q_proj.weight.dtype == torch.float32
        assert logits(layers.module).isfinite().all()
