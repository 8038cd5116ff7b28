"""Compiled blocks give the losses and gradients of eager ones, and are compiled once."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from amnesia_bench.config.train_schema import Recomputation
from amnesia_bench.modeling import HypeNetConfig, HypeNetForCausalLM, PackedRows
from amnesia_bench.modeling.causal_attention import _by_varlen_kernel, packed_sdpa
from amnesia_bench.modeling.packed_attention_op import packed_attention_by_op
from amnesia_bench.training.batches import MicroBatch
from amnesia_bench.training.blocks import (
    compile_blocks,
    let_documents_vary,
    recompute_activations,
)
from amnesia_bench.training.objectives import (
    Align,
    Distill,
    NextToken,
    Teacher,
    isolate_without_mask,
)
from tests.support.tiny_models import SHAPE, tiny_model
from tests.support.training_runs import training_run

TOKENS = 150
OTHER_TEACHER = {"objective": "distill", "teacher": "t", "isolate_documents": False}


@pytest.fixture(autouse=True)
def tracing_without_inductor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Trace as for inductor, but run PyTorch's own kernels: generating code takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def packed_batches(count: int) -> list[MicroBatch]:
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(count):
        cuts = np.sort(rng.choice(np.arange(1, TOKENS), rng.integers(1, 7), replace=False))
        ids = torch.from_numpy(rng.integers(1, 90, (1, TOKENS)))
        packed = PackedRows.from_cu_seqlens([0, *cuts.tolist(), TOKENS], TOKENS, ids.device)
        at = torch.arange(TOKENS - 1)
        batches.append(
            MicroBatch(input_ids=ids, packed=packed, targets_at=at, targets=ids[0, at + 1])
        )
    return batches


def loss_and_gradients(objective: Any, batch: MicroBatch) -> tuple[float, Tensor]:
    loss, _ = objective(batch)
    loss.backward()
    parameters = [p for p in objective.parameters() if p.grad is not None]
    gradients = torch.cat([p.grad.flatten() for p in parameters])
    for parameter in parameters:
        parameter.grad = None
    return loss.item(), gradients


def assert_equal(compiled: Any, eager: Any, batch: MicroBatch) -> None:
    loss, gradients = loss_and_gradients(compiled, batch)
    expected_loss, expected = loss_and_gradients(eager, batch)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert (gradients - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize(
    ("family", "policy", "kinds"),
    [("hypenet", "selective", 2), ("qwen2", "full", 1), ("mistral_sliding", "none", 1)],
)
def test_blocks_are_compiled_once_for_all_packings(
    family: str, policy: Recomputation, kinds: int
) -> None:
    run = training_run({"compile": True, "activation_checkpointing": policy})
    objectives = []
    for compiled in (True, False):
        model = tiny_model(family).train()
        names = [name for name, _ in model.named_parameters()]
        if compiled:
            recompute_activations(model.base_model.layers, policy)
            compile_blocks(model.base_model.layers)
        assert [name for name, _ in model.named_parameters()] == names
        isolate_without_mask(model)
        objectives.append(NextToken(run, model))
    for batch in packed_batches(20):
        assert_equal(*objectives, batch)
    assert counters["stats"]["unique_graphs"] == kinds
    assert not counters["graph_break"]


def test_the_kernel_for_packed_documents_is_compiled_once() -> None:
    compiled_for = []

    def only_trace(graph: torch.fx.GraphModule, _: Any) -> Any:
        compiled_for.append(graph)
        return lambda *_: (torch.zeros(1),)  # the kernel itself needs a GPU

    attend = torch._dynamo.optimize(only_trace, nopython=True, dynamic=False)(_by_varlen_kernel)
    q, k, v = (torch.randn(1, heads, TOKENS, 16) for heads in (4, 2, 2))
    for batch in packed_batches(5):
        assert batch.packed is not None
        let_documents_vary(batch.packed)
        attend((q, k, v), batch.packed, 0.25, 140)
    assert len(compiled_for) == 1
    assert "varlen_attn" in compiled_for[0].code


def qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE))


def linear_hypenet() -> Any:
    torch.manual_seed(0)
    mixers = ["lightning-attn"] * 4
    return HypeNetForCausalLM(HypeNetConfig(**SHAPE, mixer_types=mixers, attn_use_rope=False))


@pytest.mark.parametrize("objective", ["align", "distill"])
def test_students_and_teachers_are_compiled_once_per_kind_of_layer(objective: str) -> None:
    run = training_run(OTHER_TEACHER | {"objective": objective, "compile": True})
    objectives: list[Any] = []
    for compiled in (True, False):
        student, teacher = linear_hypenet().train(), Teacher(qwen3())
        blocks: Any = student.base_model.layers
        if objective == "align":
            objectives.append(align := Align(student, teacher, range(4)))
            blocks = align.mixers.values()
        else:
            objectives.append(Distill(run, student, teacher))
        if compiled:
            compile_blocks(teacher.model.base_model.layers)
            compile_blocks(blocks)
    ids = torch.from_numpy(np.random.default_rng(0).integers(1, 90, (3, 2, 70)))
    for rows in ids:
        empty = torch.empty(0, dtype=torch.long)
        batch = MicroBatch(input_ids=rows, packed=None, targets_at=empty, targets=empty)
        assert_equal(*objectives, batch)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


@pytest.mark.parametrize("window", [None, 20])
def test_attention_by_op_is_that_of_the_loop_over_documents(window: int | None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 90, 16, dtype=torch.float64) for heads in (4, 2, 2))
    packed = PackedRows.from_cu_seqlens([0, 30, 31, 90], 90, q.device)
    module, found = torch.nn.Module(), []
    module.num_key_value_groups = 2  # transformers' attention functions use this attribute
    for by_op in (True, False):
        leaves = tuple(x.clone().requires_grad_() for x in (q, k, v))
        if by_op:
            output = packed_attention_by_op(leaves, packed.cu_seqlens, None, window)
        else:
            output, _ = packed_sdpa(module, *leaves, None, packed=packed, sliding_window=window)
        (output * torch.linspace(0, 1, output.numel()).view_as(output)).sum().backward()
        found.append((output.detach(), *(x.grad for x in leaves)))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
    arguments = (q, k, v, packed.cu_seqlens, 0.25, window)
    leaves = tuple(x.requires_grad_() for x in (q, k, v))
    torch.library.opcheck(
        torch.ops.amnesia_bench.packed_attention.default, (*leaves, *arguments[3:])
    )
