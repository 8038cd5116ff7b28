"""What `amnesia train estimate` says against models that were built and runs that were made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from amnesia_bench.cli.main import main
from amnesia_bench.config.load import load_training
from amnesia_bench.costs.estimate import estimate_training, teacher_of
from amnesia_bench.costs.gpus import GPUS
from amnesia_bench.costs.model_shape import named_shape, read_model_shape
from amnesia_bench.modeling import HypeNetConfig, HypeNetForCausalLM
from amnesia_bench.training.loop import Loop
from amnesia_bench.training.objectives import NextToken
from tests.numerics.test_train_objectives import first_batch, random_rows
from tests.support.training_runs import (
    TINY,
    TinyJob,
    train_here,
    training_run,
    write_data,
    write_hypenet,
)

H100 = GPUS["h100"]


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": False}, {"lightning_nkv": 2}, {"mixer_types": ["attn"] * 4}],
)
def test_parameters_are_those_of_the_model(changes: dict[str, object]) -> None:
    model = HypeNetForCausalLM(HypeNetConfig(**(TINY | changes)))
    shape = read_model_shape({"model_type": "hypenet", **model.config.to_dict()})
    assert shape.parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("size", "parameters", "routing"),
    [("2b", 1.926e9, 44.0e6), ("5b", 4.825e9, 118e6), ("9b", 8.852e9, 189e6)],
)
def test_published_sizes_come_out(size: str, parameters: float, routing: float) -> None:
    shape = named_shape(f"hypenet_{size}")
    assert shape.parameters == pytest.approx(parameters, rel=1e-3)
    assert shape.routing == pytest.approx(routing, rel=5e-3)
    frozen = estimate_training(load_training(f"qk_frozen_{size}", []), shape, 8, H100)
    assert frozen.trained_parameters == shape.parameters - shape.routing
    if size == "9b":
        assert teacher_of(shape).parameters == pytest.approx(8.191e9, rel=1e-3)  # Qwen3-8B


def test_tokens_state_and_saves_are_those_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Wide enough for the headers of the files to be small beside the tensors.
    init = write_hypenet(tmp_path / "init", hidden_size=128, intermediate_size=256)
    write_data(tmp_path / "data")
    run = training_run({"steps": 4, "freeze": {"roles": ["q", "k"], "layers": "all"}})
    expected = estimate_training(
        run, read_model_shape(json.loads((init / "config.json").read_text())), 1, H100
    )
    seen: dict[str, float] = {}
    honest = Loop._step

    def step(self: Loop, *args: object) -> None:
        honest(self, *args)  # type: ignore[arg-type]
        # Gradients are gone after the update: they are as large as the weights.
        tensors = [x for x in self._state().values() if x.is_floating_point()]
        state = sum(x.numel() * x.element_size() for x in tensors)
        learner = self._parts.learner
        frozen = sum(p.numel() * p.element_size() for p in learner.untouched.values())
        seen["trained"] = sum(p.numel() for p in learner.trained.values())
        seen["state"] = state * 4 / 3 + frozen

    def keep(*_: object, **__: object) -> None:
        files = (tmp_path / "out.training/checkpoints/step-00000003").glob("*.distcp")
        seen["save"] = sum(path.stat().st_size for path in files)

    monkeypatch.setattr(Loop, "_step", step)
    monkeypatch.setattr("amnesia_bench.training.run.publish_trained", keep)
    job = TinyJob(run=run, init=init, data={"sft": tmp_path / "data"}, out=tmp_path / "out")
    assert train_here(job) == 0
    assert expected.trained_parameters == seen["trained"]
    assert expected.memory.state == seen["state"]
    assert seen["save"] == pytest.approx(expected.save_bytes, rel=0.1)
    assert expected.tokens == 4 * 4 * 32


@pytest.mark.parametrize("mixers", [TINY["mixer_types"], ["attn"] * 4, ["lightning-attn"] * 4])
def test_flops_are_those_that_are_counted(mixers: list[str]) -> None:
    # Short rows of wide layers: products with weights are nearly all there is.
    wide = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 500, "mixer_types": mixers}
    run = training_run({"global_batch": 2, "micro_batch": 2})
    model = HypeNetForCausalLM(HypeNetConfig(**(TINY | wide)))
    shape = read_model_shape({"model_type": "hypenet", **model.config.to_dict()})
    (batch,) = first_batch(run, [r for r in random_rows(2)])
    everything = type(batch)(
        input_ids=batch.input_ids,
        packed=None,
        targets_at=torch.arange(64),
        targets=batch.input_ids.flatten(),
    )
    with FlopCounterMode(display=False) as counter:
        NextToken(run, model)(everything)[0].backward()
    expected = estimate_training(run, shape, 1, H100).flops_per_token * 64
    # SDPA is counted as if every token saw every other.
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.1)


def test_eight_gpus_need_what_the_design_worked_out_by_hand() -> None:
    hours = {
        "stage1_2b": 0.3,
        "stage2_2b": 2.1,
        "stage3_2b": 1.8,
        "sft_miromind_2b": 0.4,
        "stage3_5b": 4.6,
        "sft_miromind_5b": 0.9,
        "stage3_9b": 8.0,
        "sft_miromind_9b": 1.6,
    }
    memory = {"stage3_2b": 19e9, "stage3_5b": 30e9}
    for name, expected in hours.items():
        # The design recomputed all activations.
        run = load_training(name, ["train.activation_checkpointing=full"])
        found = estimate_training(run, named_shape(str(run.train.model)), 8, H100)
        assert found.gpu_hours / 8 == pytest.approx(expected, rel=0.25)
        if name in memory:
            assert found.memory.total == pytest.approx(memory[name], rel=0.05)


def test_more_processes_hold_less_each_and_a_gpu_that_is_too_small_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["train", "estimate", "--config", "sft_miromind_9b", "--gpu", "h100"]
    assert main([*command, "--processes", "8", "--json"]) == 0
    eight = json.loads(capsys.readouterr().out)
    assert main([*command, "--processes", "16", "--json"]) == 0
    sixteen = json.loads(capsys.readouterr().out)
    assert sixteen["memory"]["state"] == eight["memory"]["state"] / 2
    assert main([*command, "--processes", "1"]) == 2
    said = capsys.readouterr()
    assert "GB do not fit into the 80 GB of a h100" in said.err
    assert "8.852 B parameters" in said.out
    assert main([*command, "--processes", "3"]) == 2
    assert "cannot be divided among 3 processes with micro-batches of 1" in capsys.readouterr().err


def test_an_estimate_needs_no_torch() -> None:
    code = (
        "import sys; from amnesia_bench.cli.main import main; "
        "main(['train', 'estimate', '--config', 'stage1_2b']); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "total" in done.stdout
