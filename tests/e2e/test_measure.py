"""`amnesia measure`, then `amnesia restore --measured`: losses and Fisher values, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.data.sequence_store import open_store
from amnesia_bench.errors import UserError
from amnesia_bench.requests.checkpoints import MeasureRequest, RandomTokens, RestoreRequest
from tests.support.small_data import (
    TEXT,
    data_config,
    prepare,
    save_tokenizer,
    write_rows,
)
from tests.support.tiny_models import SHAPE

STEPS = ["restore.rule.max_steps=4", "restore.rule.max_perplexity_ratio=1.0"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hybrids of which the second forgot something, and texts."""
    from amnesia_bench.modeling import HypeNetConfig, HypeNetForCausalLM

    top = tmp_path_factory.mktemp("measure")
    torch.manual_seed(0)
    config = HypeNetConfig(
        **{**SHAPE, "vocab_size": 300, "num_hidden_layers": 2},
        mixer_types=["lightning-attn", "attn"],
        attn_use_rope=False,
        attn_logit_scale_a=50.0,
        lightning_nkv=4,
        lightning_use_qk_norm=True,
        lightning_use_output_norm=True,
        tie_word_embeddings=True,
    )
    model = HypeNetForCausalLM(config).eval()
    for name in ("pre", "post"):
        model.save_pretrained(top / name)
        save_tokenizer(top / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    rows = [{"text": f"{number} and {number + 1} " * 6} for number in range(12)]
    file = write_rows(top / "rows.jsonl", rows)
    prepare(data_config(**TEXT, sequence_tokens=64), top / "pre", top / "data", [file])
    return top


def request(folders: Path, variant: str, *overrides: str, **changes: Any) -> MeasureRequest:
    chosen = ab.load_variant(variant, overrides)
    tokens = (
        {"random_tokens": RandomTokens(samples=2, tokens=16, seed=3)}
        if "fisher" in variant
        else {"data": folders / "data", "samples": 3, "tokens": 40}
    )
    values = {"pre": folders / "pre", "post": folders / "post", "variant": chosen, **tokens}
    return MeasureRequest(**{**values, **changes})


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def loss(folder: Path, data: Path) -> float:
    """The mean of transformers' own losses of the first 40 tokens of three texts."""
    store, model = open_store(data), load(folder)
    losses = []
    for i in range(3):
        ids = torch.from_numpy(store.sequence(i).tokens[:40].astype(np.int64))[None]
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=ids).loss))
    return sum(losses) / 3


def restored(
    folders: Path, variant: str, measured: Path, out: Path, *overrides: str
) -> dict[str, torch.Tensor]:
    chosen = ab.load_variant(variant, overrides)
    values = {"pre": folders / "pre", "post": folders / "post", "variant": chosen}
    ab.restore(RestoreRequest(**values, measured=measured), out)
    return load_file(out / "model.safetensors")


def blends(folders: Path, alpha: float) -> dict[str, torch.Tensor]:
    pre, post = (load_file(folders / name / "model.safetensors") for name in ("pre", "post"))
    return {
        name: ((1 - alpha) * post[name].double() + alpha * pre[name].double()).float()
        for name in post
    }


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=3e-7, atol=1e-9)


def test_lm_cocktail_by_the_losses_of_transformers(folders: Path, tmp_path: Path) -> None:
    temperature = "restore.rule.temperature=0.05"
    measurement = ab.measure(request(folders, "lm_cocktail", temperature), tmp_path / "m.json")
    expected = [loss(folders / name, folders / "data") for name in ("pre", "post")]
    assert [measurement.loss_pre, *measurement.losses] == pytest.approx(expected, rel=1e-5)
    out = restored(folders, "lm_cocktail", tmp_path / "m.json", tmp_path / "out", temperature)
    weights = torch.softmax(-torch.tensor(expected, dtype=torch.float64) / 0.05, 0)
    assert 0.02 < weights[0] < 0.98
    record = json.loads((tmp_path / "out" / "restoration.json").read_text())
    alpha = record["variant"]["measured"]["alpha"]
    assert alpha == pytest.approx(float(weights[0]), rel=1e-4)
    assert_close(out, blends(folders, alpha))


def test_step_back_measures_what_restore_writes(folders: Path, tmp_path: Path) -> None:
    # The noise happens to lower the loss, so the model without it is the one that must step back.
    (tmp_path / "pre").symlink_to(folders / "post")
    (tmp_path / "post").symlink_to(folders / "pre")
    (tmp_path / "data").symlink_to(folders / "data")
    file = tmp_path / "m.json"
    measurement = ab.measure(request(tmp_path, "step_back", *STEPS), file)
    losses = measurement.losses
    assert measurement.loss_pre is not None
    # Measured until the first step that is good enough, or to the last one.
    assert all(value > measurement.loss_pre for value in losses[:-1])
    assert 2 <= len(losses) <= 5
    out = restored(tmp_path, "step_back", file, tmp_path / "out", *STEPS)
    assert_close(out, blends(tmp_path, 1 - 0.9 ** (len(losses) - 1)))
    assert loss(tmp_path / "out", folders / "data") == pytest.approx(losses[-1], rel=1e-6)
    assert not (tmp_path / ".m.json.step").exists()


def test_without_drift_there_is_no_step_back(folders: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    measurement = ab.measure(request(folders, "qk_step_back"), file)
    assert len(measurement.losses) == 1
    with pytest.raises(UserError, match=r"its alpha, the share of .*pre, is 0"):
        restored(folders, "qk_step_back", file, tmp_path / "out")


def test_the_information_of_a_layer_is_that_of_its_gradients(folders: Path, tmp_path: Path) -> None:
    """Against autograd on the logits of each layer's parameters, and the same random draws."""
    measurement = ab.measure(request(folders, "layer_fisher"), tmp_path / "m.json")
    for side in ("pre", "post"):
        model = load(folders / side)
        layers: dict[int | None, list[torch.Tensor]] = {}
        for name, parameter in model.named_parameters():
            layer = int(name.split(".")[2]) if name.startswith("model.layers.") else None
            layers.setdefault(layer, []).append(parameter)
        texts = np.random.default_rng(3).integers(0, 300, (2, 16), np.int32)
        generator = torch.Generator().manual_seed(3)
        sums = dict.fromkeys(layers, 0.0)
        for tokens in texts:
            ids = torch.from_numpy(tokens.astype(np.int64))[None]
            chances = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
            drawn = torch.multinomial(chances.detach().exp(), 1, generator=generator)
            log_likelihood = chances.gather(1, drawn).sum()
            for layer, parameters in layers.items():
                for slope in torch.autograd.grad(log_likelihood, parameters, retain_graph=True):
                    sums[layer] += float(slope.double().square().sum())
        for entry in measurement.fisher:
            size = sum(parameter.numel() for parameter in layers[entry.layer])
            expected = sums[entry.layer] / size / 2
            assert getattr(entry, side) == pytest.approx(expected, rel=1e-3)
    out = restored(folders, "layer_fisher", tmp_path / "m.json", tmp_path / "out")
    for entry in measurement.fisher:
        expected = blends(folders, entry.pre / (entry.pre + entry.post))
        for name, tensor in out.items():
            layer = int(name.split(".")[2]) if name.startswith("model.layers.") else None
            if layer == entry.layer:
                torch.testing.assert_close(tensor, expected[name], rtol=3e-7, atol=1e-9)


def test_the_information_of_w_q_and_w_k_alone(folders: Path, tmp_path: Path) -> None:
    measurement = ab.measure(request(folders, "qk_layer_fisher"), tmp_path / "m.json")
    assert [entry.layer for entry in measurement.fisher] == [1]
    out = restored(folders, "qk_layer_fisher", tmp_path / "m.json", tmp_path / "out")
    post = load_file(folders / "post" / "model.safetensors")
    changed = {name for name, tensor in out.items() if not torch.equal(tensor, post[name])}
    assert changed == {f"model.layers.1.self_attn.{p}_proj.weight" for p in "qk"}


def test_the_command_measures_what_the_front_door_does(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = ab.measure(request(folders, "qk_layer_fisher"), tmp_path / "ours.json")
    pair = ["--pre", str(folders / "pre"), "--post", str(folders / "post")]
    command = ["measure", *pair, "--variant", "qk_layer_fisher", "--samples", "2"]
    command += ["--tokens", "16", "--seed", "3", "--out", str(tmp_path / "theirs.json")]
    assert main(command) == 0
    assert "information in pre" in capsys.readouterr().out
    theirs = json.loads((tmp_path / "theirs.json").read_text())
    assert theirs == json.loads((tmp_path / "ours.json").read_text())
    assert theirs["data"] == ours.data


def refused(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    assert main([str(word) for word in command]) == 2
    return capsys.readouterr().err


def test_a_measurement_is_for_its_variant_and_its_checkpoints(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "m.json", tmp_path / "out"
    ab.measure(request(folders, "qk_layer_fisher"), file)
    pair = ["--pre", folders / "pre", "--post", folders / "post"]
    restore = ["restore", "--out", out, "--measured", file]
    message = refused(capsys, *restore, *pair, "--variant", "layer_fisher")
    assert "was measured with select.roles=['q', 'k'], but the variant has all" in message
    message = refused(capsys, *restore, *pair, "--variant", "qk_lm_cocktail")
    assert "was measured with rule.kind=layer_fisher" in message
    message = refused(capsys, *restore, *pair, "--variant", "qk")
    assert "rule copy uses no measured values: leave --measured out" in message
    message = refused(capsys, "restore", "--out", out, *pair, "--variant", "lm_cocktail")
    assert "amnesia measure --variant lm_cocktail" in message
    message = refused(
        capsys, "restore", "--out", out, *pair, "--variant", "qk_layer_fisher",
        "--measured", tmp_path / "none.json",
    )  # fmt: skip
    assert "none.json: no such file" in message
    other = tmp_path / "other"
    other.mkdir()
    for path in (folders / "post").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][0] += 1  # of a tensor that is not even restored
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    choice = ["--variant", "qk_layer_fisher"]
    message = refused(capsys, *restore, "--pre", folders / "pre", "--post", other, *choice)
    assert "was measured with another checkpoint as post" in message
    content = json.loads(file.read_text())
    content["fisher"][0]["pre"] *= 2
    file.write_text(json.dumps(content))
    message = refused(capsys, *restore, *pair, *choice)
    assert "was changed since it was written" in message
    assert not out.exists()


@pytest.mark.parametrize("variant", ["qk_lm_cocktail", "qk_layer_fisher"])
def test_a_model_that_diverged_is_refused(variant: str, folders: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in (folders / "post").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"broken: its (loss|Fisher information) is NaN"):
        ab.measure(request(folders, variant, post=broken), tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()


def test_what_cannot_be_measured_is_refused(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = ["measure", "--out", tmp_path / "m.json"]
    measure += ["--pre", folders / "pre", "--post", folders / "post", "--variant"]
    assert "its rule blend needs no measurement" in refused(capsys, *measure, "wise_ft")
    assert "is measured on data (--data DIR)" in refused(capsys, *measure, "lm_cocktail")
    data = ["--data", folders / "data"]
    assert "on random tokens, no data" in refused(capsys, *measure, "layer_fisher", *data)
    assert "--samples 0" in refused(capsys, *measure, "lm_cocktail", *data, "--samples", "0")
    assert "--tokens 1" in refused(capsys, *measure, "lm_cocktail", *data, "--tokens", "1")
    message = refused(capsys, *measure, "lm_cocktail", "--data", folders / "pre")
    assert "pre" in message
    assert not (tmp_path / "m.json").exists()
    (tmp_path / "m.json").write_text("mine")
    assert "already exists" in refused(capsys, *measure, "lm_cocktail", *data)
    assert (tmp_path / "m.json").read_text() == "mine"
