"""Muon in the loop: torch's update of matrices but in float32, saved whole, in one process only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from amnesia_bench.errors import StageFailedError, UserError
from amnesia_bench.training.muon import orthogonalized
from amnesia_bench.training.optimizers import Updates, check_optimizer
from tests.support.checkpoints import tensor_bytes
from tests.support.training_runs import TinyJob, train_here, training_run, write_data, write_hypenet

MUON = {"optimizer": {"kind": "muon"}}
NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "model.norm.weight")


def parameters() -> dict[str, nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    shapes = ((20, 8), (12, 8), (8,))
    return {
        name: nn.Parameter(torch.randn(shape, generator=rng))
        for name, shape in zip(NAMES, shapes, strict=True)
    }


def give_gradients(trained: dict[str, nn.Parameter], step: int) -> None:
    rng = torch.Generator().manual_seed(step)
    for parameter in trained.values():
        parameter.grad = torch.randn(parameter.shape, generator=rng)


def test_matrices_of_layers_are_updated_by_muon_and_all_else_by_adamw() -> None:
    settings = training_run(MUON).train.optimizer
    ours, theirs = parameters(), parameters()
    updates = Updates(settings, ours, torch.device("cpu"), fused=False)
    updates.begin(0)
    embedding, matrix, norm = theirs.values()
    muon = torch.optim.Muon([matrix], lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([embedding, norm], lr=1e-2, betas=settings.betas, weight_decay=0.0)
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        updates.apply(1e-2)
        muon.step()
        adamw.step()
    assert all(torch.equal(ours[name], theirs[name]) for name in (NAMES[0], NAMES[2]))
    # The same update, except that torch orthogonalises in bfloat16, whose unit is 2**-8.
    start = parameters()[NAMES[1]]
    moved, expected = ours[NAMES[1]] - start, matrix - start
    assert ((moved - expected).norm() / expected.norm()).item() < 2**-6
    assert all(parameter.grad is None for parameter in ours.values())
    momentum = muon.state[matrix]["momentum_buffer"]
    assert torch.equal(updates.state()[f"momentum_buffer/{NAMES[1]}"], momentum)


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (8, 8)])
def test_the_orthogonalisation_is_exact_to_float32(shape: tuple[int, int]) -> None:
    a, b, c = coefficients = (3.4445, -4.7750, 2.0315)
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalized(matrix, coefficients, 5, 1e-7)
    # In terms of singular values, an iteration is s <- a s + b s^3 + c s^5.
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    expected = left @ torch.diag(values) @ right
    assert (result - expected).abs().max().item() < 1e-5
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_the_orthogonalisation_of_zero_is_zero() -> None:
    assert not orthogonalized(torch.zeros(4, 3), (3.4445, -4.7750, 2.0315), 5, 1e-7).any()


def test_an_update_that_is_left_out_changes_nothing_that_is_saved() -> None:
    trained = parameters()
    updates = Updates(training_run(MUON).train.optimizer, trained, torch.device("cpu"), fused=False)
    updates.begin(0)
    before = {name: value.clone() for name, value in updates.state().items()}
    give_gradients(trained, 0)
    updates.skip()
    assert all(torch.equal(value, before[name]) for name, value in updates.state().items())
    assert all(parameter.grad is None for parameter in trained.values())


def test_a_resumed_run_with_muon_is_the_run_that_was_not_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from amnesia_bench.training.loop import Loop

    def job(out: str) -> TinyJob:
        return TinyJob(
            run=training_run(MUON),
            init=tmp_path / "init",
            data={"sft": tmp_path / "data"},
            out=tmp_path / out,
        )

    write_hypenet(tmp_path / "init")
    write_data(tmp_path / "data")
    assert train_here(job("whole")) == 0
    honest = Loop._step

    def until_five(self: Loop, step: int, *args: object) -> None:
        if step == 5:
            raise StageFailedError("the machine is gone")
        honest(self, step, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", until_five)
        with pytest.raises(StageFailedError, match="gone"):
            train_here(job("resumed"))
    assert train_here(job("resumed")) == 0
    assert tensor_bytes(tmp_path / "resumed") == tensor_bytes(tmp_path / "whole")
    assert tensor_bytes(tmp_path / "whole") != tensor_bytes(tmp_path / "init")


def test_muon_is_refused_for_more_than_one_process() -> None:
    train = training_run(MUON).train
    check_optimizer(train, 1)
    check_optimizer(training_run().train, 8)
    with pytest.raises(UserError, match="kind=muon with 2 processes"):
        check_optimizer(train, 2)
