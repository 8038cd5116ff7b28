"""A model with random weights: the seed decides them, and it opens as any checkpoint does."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.errors import UserError
from amnesia_bench.requests.checkpoints import InitializeRequest
from amnesia_bench.store.hashing import verify_manifest
from tests.support.small_data import save_tokenizer


def initialize(model: str, tokenizer: Path, seed: int, out: Path) -> int:
    request = InitializeRequest(model=ab.load_model(model), tokenizer=tokenizer, seed=seed)
    return ab.initialize(request, out)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_the_seed_decides_the_weights(tmp_path: Path, tokenizer: Path) -> None:
    state = torch.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        initialize("qwen3_laptop", tokenizer, seed, tmp_path / name)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    assert torch.equal(torch.get_rng_state(), state)
    weights = load_file(tmp_path / "a" / "model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert not verify_manifest(tmp_path / "a")


def test_model_and_tokenizer_open_and_agree_on_the_end(tmp_path: Path, tokenizer: Path) -> None:
    parameters = initialize("hypenet_laptop", tokenizer, 0, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.num_parameters() == parameters
    assert model.config.eos_token_id == loaded.eos_token_id
    assert model.config.pad_token_id == loaded.pad_token_id


def test_a_mistake_is_named_and_nothing_is_written(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="model=qwen3_lap: no such option") as caught:
        initialize("qwen3_lap", tokenizer, 0, out)
    assert "Did you mean qwen3_laptop?" in str(caught.value.hint)
    unknown = ab.load_model("hypenet_tiny").model_copy(
        update={"values": {"model_type": "own_kind"}}
    )
    with pytest.raises(UserError, match="transformers has no model_type own_kind"):
        ab.initialize(InitializeRequest(model=unknown, tokenizer=tokenizer, seed=0), out)
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        initialize("qwen3_laptop", tmp_path, 0, out)
    with pytest.raises(UserError, match="hypenet_tiny has a vocabulary of 257 tokens"):
        initialize("hypenet_tiny", tokenizer, 0, out)
    command = ["init", "--model", "qwen3_laptop", "--tokenizer", str(tokenizer), "--out", str(out)]
    assert not out.exists()
    assert main(command) == 0
    assert "M random parameters" in capsys.readouterr().out
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err
