"""A training step on tensors without data: what it measures, and the estimate against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from scripts.bench_dry_run import RESULTS, case_key, cases
from torch import nn

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.costs.estimate import TrainingEstimate
from amnesia_bench.errors import UserError
from amnesia_bench.modeling import mixers
from amnesia_bench.records.codec import to_json
from amnesia_bench.training.dry_run.measure import DryRun
from tests.support.training_runs import write_hypenet

STORED: dict[str, Any] = json.loads(RESULTS.read_text())["runs"]
ADAMW = "train.optimizer.kind=adamw"


def both(name: str, processes: int, *overrides: str) -> tuple[DryRun, TrainingEstimate]:
    run = ab.load_training(name, overrides)
    dry = ab.dry_run(ab.DryRunRequest(run=run, processes=processes))
    return dry, ab.estimate(ab.EstimateRequest(run=run, processes=processes))


def check_estimate(dry: Any, estimate: TrainingEstimate) -> None:
    """The estimate has the FLOPs of the dry run to 3 %, and a peak that is a close upper bound."""
    assert estimate.flops_per_token == pytest.approx(dry["flops_per_token"], rel=0.03)
    hardware = dry["hardware_flops_per_token"]
    assert estimate.hardware_flops_per_token == pytest.approx(hardware, rel=0.03)
    peak = max(dry["peak_bytes"].values())
    assert peak <= estimate.memory.total - estimate.memory.reserve <= 1.25 * peak


@pytest.mark.parametrize("policy", ["none", "selective", "full"])
def test_flops_of_a_step_are_those_of_the_estimate(policy: str) -> None:
    dry, estimate = both("tiny_sft_cot", 1, f"train.activation_checkpointing={policy}")
    assert estimate.flops_per_token == pytest.approx(dry.flops_per_token, rel=0.03)
    hardware = dry.hardware_flops_per_token
    assert estimate.hardware_flops_per_token == pytest.approx(hardware, rel=0.03)
    assert (hardware > dry.flops_per_token) is (policy != "none")
    # After the update, gradients are gone; before it, all of the state is there.
    assert dry.peak_bytes["optimizer"] == pytest.approx(estimate.memory.state, rel=0.02)
    assert dry.peak <= estimate.memory.total - estimate.memory.reserve


@pytest.mark.parametrize("name", ["tiny_stage1", "tiny_stage2", "tiny_pretrain"])
def test_every_objective_and_family_runs(name: str) -> None:
    dry, estimate = both(name, 1)
    assert dry.documents == 1
    assert dry.peak <= estimate.memory.total - estimate.memory.reserve
    if name != "tiny_pretrain":  # its sliding windows need a mask, so flash attention is not used
        assert estimate.flops_per_token == pytest.approx(dry.flops_per_token, rel=0.05)


def test_collectives_are_those_of_fsdp() -> None:
    options = (ADAMW, "train.micro_batch=1", "train.activation_checkpointing=full")
    dry, _ = both("tiny_sft_cot", 4, *options)
    layers, root = 4, 1
    gathers, scatters = (dry.collectives[kind] for kind in ("all-gather", "reduce-scatter"))
    # Forward and backward gather each layer; the root stays gathered in between.
    assert (gathers.count, scatters.count) == (2 * layers + root, layers + root)
    body = ab.load_model("hypenet_laptop")
    assert body.values["tie_word_embeddings"]
    parameters = both("tiny_sft_cot", 1)[1].parameters
    assert scatters.bytes == pytest.approx(4 * parameters, rel=1e-3)  # reduced in float32


def test_nodes_have_copies_and_sum_gradients_once_per_step() -> None:
    options = (ADAMW, "train.global_batch=64", "train.micro_batch=1")
    one, _ = both("tiny_sft_cot", 8, *options)
    two, estimate = both("tiny_sft_cot", 16, *options)
    assert (one.per_node, two.per_node) == (8, 8)
    assert two.peak_bytes["optimizer"] == pytest.approx(one.peak_bytes["optimizer"], rel=0.01)
    assert two.collectives["all-gather"] == one.collectives["all-gather"]
    # Layers and root once per step of two micro-batches, beside the loss and the norm.
    assert two.micro_batches == 2
    assert two.collectives["all-reduce"].count == (5 + 2) / 2
    assert estimate.memory.state == pytest.approx(two.peak_bytes["optimizer"], rel=0.05)


def test_nothing_stays_replaced() -> None:
    attention, lightning = nn.functional.scaled_dot_product_attention, mixers.lightning_attention
    resize: Any = torch.UntypedStorage.resize_
    both("tiny_sft_cot", 1)
    assert nn.functional.scaled_dot_product_attention is attention
    assert mixers.lightning_attention is lightning
    assert torch.UntypedStorage.resize_ is resize
    assert not dist.is_initialized()


def test_the_command_prints_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    dry, _ = both("tiny_sft_cot", 1)
    command = ["train", "dry-run", "--config", "tiny_sft_cot", "--processes", "1"]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["fits"]
    assert printed["dry_run"] == to_json(dry)
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "GB at the peak, backward" in text
    assert "4 equal documents per sequence" in text


def test_a_model_that_does_not_fit_is_named_with_what_to_change(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Softmax layers and large loss chunks: few operations, so the dry run takes seconds.
    command = ["train", "dry-run", "--config", "tiny_pretrain", "--processes", "1"]
    large = ["train.global_batch=64", "train.micro_batch=64", "train.sequence_tokens=65536"]
    large += ["train.loss_chunk_rows=1048576"]
    assert main([*command, "--gpu", "a100", *large]) == 2
    message = capsys.readouterr().err
    assert "do not fit into the 80 GB of a a100" in message
    assert "at the peak, in the" in message
    assert "train.micro_batch=32" in message
    assert "train.activation_checkpointing=full" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sft_miromind_2b", "--processes", "3"], "cannot be divided among 3 processes"),
        (["stage1_2b", "--processes", "64"], "a global batch of 32 sequences cannot be divided"),
        (["tiny_stage3", "--processes", "2", "train.micro_batch=1"], "Muon needs whole matrices"),
        (["sft_miromind_2b", "--gpu", "b200"], "invalid choice: 'b200'"),
        (["sft_miromind_2b", "--processes", "0"], "processes"),
    ],
)
def test_bad_input_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["train", "dry-run", "--config", *arguments])
    except SystemExit as error:  # argparse
        code = int(error.code or 0)
    assert code == 2
    assert message in capsys.readouterr().err


def test_a_config_without_a_model_needs_a_folder(tmp_path: Path) -> None:
    run = ab.load_training("sft_miromind_2b", ["train.model=null"])
    with pytest.raises(UserError, match="names no model: --init is missing"):
        ab.dry_run(ab.DryRunRequest(run=run))


def test_the_config_of_a_checkpoint_replaces_the_model(tmp_path: Path) -> None:
    init = write_hypenet(tmp_path / "init")
    run = ab.load_training("tiny_sft_cot")
    dry = ab.dry_run(ab.DryRunRequest(run=run, init=init, processes=1))
    estimate = ab.estimate(ab.EstimateRequest(run=run, init=init, processes=1))
    # Small tensors are rounded up to 512 bytes.
    assert estimate.memory.state <= dry.peak_bytes["optimizer"] <= 1.2 * estimate.memory.state
    config = json.loads((init / "config.json").read_text())
    quantised = config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (init / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(UserError, match="training quantised weights is not supported"):
        ab.dry_run(ab.DryRunRequest(run=run, init=init, processes=1))


def test_code_of_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    init = write_hypenet(tmp_path / "init")
    config = json.loads((init / "config.json").read_text()) | {"model_type": "their_own"}
    (init / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="a model of type their_own cannot be built"):
        ab.dry_run(ab.DryRunRequest(run=ab.load_training("tiny_sft_cot"), init=init, processes=1))


@pytest.mark.parametrize("case", STORED)
def test_the_estimate_of_a_full_scale_config_is_close_to_its_dry_run(case: str) -> None:
    name, *overrides, processes = case.replace("--processes ", "").split(" ")
    run = ab.load_training(name, overrides)
    estimate = ab.estimate(ab.EstimateRequest(run=run, processes=int(processes)))
    check_estimate(STORED[case], estimate)
    assert max(STORED[case]["peak_bytes"].values()) + estimate.memory.reserve < 80e9


@pytest.mark.slow
@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case_key(*case))
def test_a_full_scale_config_runs(case: tuple[str, list[str], int]) -> None:
    name, overrides, processes = case
    dry, estimate = both(name, processes, *overrides)
    check_estimate(to_json(dry), estimate)
    assert dry.peak + estimate.memory.reserve < 80e9
    assert to_json(dry) == STORED.get(case_key(*case), to_json(dry))
