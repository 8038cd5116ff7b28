"""Runs with compiled blocks: sharded over two processes, with a cache, and without a compiler."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from amnesia_bench.errors import UserError
from tests.support.training_runs import (
    Started,
    TinyJob,
    as_process,
    train_here,
    training_run,
    write_data,
    write_hypenet,
)

LAYERS = {"num_hidden_layers": 2, "mixer_types": ["lightning-attn", "attn"]}


def traced_process(job: TinyJob, rank: int, size: int, port: int, log: Path) -> None:
    """Be one process of a run that traces as for inductor, but runs PyTorch's own kernels."""
    import torch

    torch.compile = functools.partial(torch.compile, backend="aot_eager")  # type: ignore[assignment]
    as_process(job, rank, size, port, log)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_two_processes_with_compiled_blocks_train_and_publish_as_with_eager_ones(
    tmp_path: Path, dtype: str
) -> None:
    init, data = write_hypenet(tmp_path / "init", **LAYERS), write_data(tmp_path / "data")
    lines, names = [], []
    for out, compiled in (("eager", False), ("compiled", True)):
        policy = "selective" if compiled else "none"
        changes = {"steps": 3, "compile": compiled, "activation_checkpointing": policy}
        run = training_run(changes | {"compute_dtype": dtype})
        job = TinyJob(run=run, init=init, data={"sft": data}, out=tmp_path / out)
        started = Started(job, 2, traced_process)
        assert started.wait(300) == [0, 0], started.said
        metrics = (job.out / "metrics.jsonl").read_text().splitlines()
        lines.append([json.loads(line) for line in metrics])
        with safe_open(job.out / "model.safetensors", "pt") as weights:
            names.append(set(weights.keys()))
        settings = json.loads((job.out / "training.json").read_text())
        assert settings["run"]["train"]["compile"] is compiled
    tolerance = 1e-6 if dtype == "fp32" else 2e-3
    for eager, traced in zip(*lines, strict=True):
        assert traced["loss"] == pytest.approx(eager["loss"], rel=tolerance)
        assert traced["grad_norm"] == pytest.approx(eager["grad_norm"], rel=10 * tolerance)
    assert names[0] == names[1]


ONE_BLOCK = """
import json, torch
from torch._dynamo.utils import counters
from amnesia_bench.training.blocks import compile_blocks
from tests.support.tiny_models import tiny_model
eager, compiled = (tiny_model("hypenet").train().model for _ in range(2))
for model in (eager, compiled):
    model.layers = model.layers[:1]
compile_blocks(compiled.layers)
ids, gradients = torch.arange(1, 65)[None], []
for model in (eager, compiled):
    hidden = model(ids, use_cache=False).last_hidden_state
    (hidden * torch.linspace(0, 1, hidden.numel()).view_as(hidden)).sum().backward()
    parameters = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    gradients.append(torch.cat([hidden.detach().flatten(), *parameters]))
error = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
print(json.dumps([counters["inductor"], float(error)]))
"""


@pytest.mark.slow
def test_a_second_process_takes_compiled_code_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    found = []
    for _ in range(2):
        command = [sys.executable, "-c", ONE_BLOCK]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    (first, error), (second, same_error) = found
    assert error == same_error <= 1e-6
    assert (first["fxgraph_cache_miss"], first.get("fxgraph_cache_hit", 0)) == (2, 0)
    assert (second.get("fxgraph_cache_miss", 0), second["fxgraph_cache_hit"]) == (0, 2)


def test_a_missing_compiler_is_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init, data = write_hypenet(tmp_path / "init", **LAYERS), write_data(tmp_path / "data")
    job = TinyJob(
        run=training_run({"compile": True}), init=init, data={"sft": data}, out=tmp_path / "out"
    )
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(UserError, match=r"train\.compile=true needs a C\+\+ compiler") as caught:
        train_here(job)
    assert "train.compile=false" in str(caught.value.hint)
    assert not (tmp_path / "out.training").exists()
