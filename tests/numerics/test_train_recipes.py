"""Each quirk of the released code is a flag that changes what it says, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amnesia_bench.modeling import HypeNetForCausalLM
from amnesia_bench.tracking.metrics_file import read_metrics
from amnesia_bench.training.batches import Batches, FileOrder
from amnesia_bench.training.models import _round_buffers
from amnesia_bench.training.objectives import Distill, Teacher
from tests.numerics.test_train_objectives import (
    DISTILL,
    Rows,
    first_batch,
    hypenet,
    qwen3,
    random_rows,
)
from tests.support.training_runs import (
    Row,
    TinyJob,
    train_here,
    training_run,
    write_data,
    write_hypenet,
)


def metrics_of(folder: Path, recipe: dict[str, object], **train: Any) -> list[dict[str, Any]]:
    out = folder / "_".join(map(str, ["out", *recipe.values(), *train]))
    run = training_run({"steps": 3} | train, recipe)
    job = TinyJob(run=run, init=folder / "init", data={"sft": folder / "data"}, out=out)
    if not out.exists():
        assert train_here(job) == 0
    return read_metrics(out / "metrics.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    write_hypenet(folder / "init")
    write_data(folder / "data")
    return folder


def kd_loss(recipe: dict[str, object], rows: int) -> tuple[float, Distill, Any]:
    run = training_run(DISTILL | {"global_batch": rows, "micro_batch": rows}, recipe)
    (batch,) = first_batch(run, random_rows(rows))
    objective = Distill(run, hypenet(), Teacher(qwen3()))
    return objective(batch)[0].item(), objective, batch


def test_kd_rows_first512_sums_512_positions_and_still_divides_by_all() -> None:
    rows = 20  # of 32 tokens: 640 positions
    everything, objective, batch = kd_loss({}, rows)
    first, parity, _ = kd_loss({"kd_rows": "first512"}, rows)
    assert parity.count(batch) == objective.count(batch) == 640
    run = training_run(DISTILL | {"global_batch": 16, "micro_batch": 16})
    (short,) = first_batch(run, random_rows(rows))
    expected = Distill(run, hypenet(), Teacher(qwen3()))(short)[0].item()
    assert first == pytest.approx(expected, rel=1e-12)
    assert first < everything


def test_kd_dtype_rounds_the_kl() -> None:
    def loss(dtype: str) -> torch.Tensor:
        run = training_run(DISTILL | {"global_batch": 2, "micro_batch": 2}, {"kd_dtype": dtype})
        (batch,) = first_batch(run, random_rows(2))
        return Distill(run, hypenet().float(), Teacher(qwen3().float()))(batch)[0]

    precise, rounded = loss("fp32"), loss("bf16")
    assert rounded == rounded.bfloat16()
    assert precise != rounded
    assert rounded.item() == pytest.approx(precise.item(), rel=0.05)


def test_loss_mean_micro_batches_weighs_uneven_micro_batches_alike(folder: Path) -> None:
    fixed = metrics_of(folder, {})
    parity = metrics_of(folder, {"loss_mean": "micro_batches"})
    whole = metrics_of(folder, {"loss_mean": "micro_batches"}, micro_batch=4)
    assert parity[0]["loss"] != pytest.approx(fixed[0]["loss"], rel=1e-4)
    assert whole[0]["loss"] == pytest.approx(fixed[0]["loss"], rel=1e-5)  # one micro-batch


def test_shuffle_off_reads_sequences_as_they_were_written(folder: Path) -> None:
    run = training_run({}, {"shuffle": False})
    assert metrics_of(folder, {"shuffle": False})[0]["batch_checksum"] != \
        metrics_of(folder, {})[0]["batch_checksum"]  # fmt: skip
    order = FileOrder([3, 2])
    assert [order.sample(i) for i in range(7)] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (0, 0), (0, 1)]  # fmt: skip
    rows = random_rows(8)
    batches = Batches(run, {"sft": Rows(rows)}, FileOrder([8]), 0, 1)
    seen = [m.input_ids[0].tolist() for s in (1, 2) for m in batches.step(s).micro_batches]
    assert seen == [row.tokens.tolist() for row in rows]


def test_isolate_documents_never_packs_nothing() -> None:
    run = training_run({"global_batch": 1}, {"isolate_documents": "never"})
    row = random_rows(1)[0]
    (batch,) = first_batch(run, [Row(row.tokens, np.ones(32, bool), row.document_lengths)])
    assert batch.packed is None
    assert len(batch.targets) == 31  # also the first tokens of the second and third document


def test_buffers_dtype_rounds_decays_and_frequencies_and_nothing_else() -> None:
    model: HypeNetForCausalLM = hypenet().float()
    before = {name: x.clone() for name, x in [*model.named_buffers(), *model.named_parameters()]}
    _round_buffers(model)
    after = dict([*model.named_buffers(), *model.named_parameters()])
    changed = {name for name, x in before.items() if not torch.equal(x, after[name])}
    assert {name.rsplit(".", 1)[1] for name in changed} == {"inv_freq", "original_inv_freq"}
    for name in changed:
        assert torch.equal(after[name], before[name].bfloat16().float())
        assert after[name].dtype == torch.float32


def test_decays_of_slopes_that_bfloat16_does_not_hold_are_rounded() -> None:
    model = hypenet(num_attention_heads=16, num_key_value_heads=8, lightning_nkv=16).float()
    name = "model.layers.0.self_attn.log_decay"
    before = dict(model.named_buffers())[name].clone()
    _round_buffers(model)
    after = dict(model.named_buffers())[name]
    assert 0 < ((after - before) / before).abs().max() < 0.005


def test_master_dtype_is_that_of_weights_and_moments(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from amnesia_bench.training.loop import Loop

    dtypes: list[set[torch.dtype]] = []
    honest: Callable[..., None] = Loop._step

    def step(self: Loop, *args: Any) -> None:
        honest(self, *args)
        dtypes.append({x.dtype for x in self._state().values() if x.is_floating_point()})

    monkeypatch.setattr(Loop, "_step", step)
    metrics_of(folder, {}, seed=1)
    metrics_of(folder, {"master_dtype": "bf16"}, seed=1, compute_dtype="bf16")
    assert dtypes == [{torch.float32}] * 3 + [{torch.bfloat16}] * 3
