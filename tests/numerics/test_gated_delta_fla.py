"""What the op of the gated delta rule hands to fla, without a GPU: stand-ins with the signatures
of fla 0.6.0, whose results come from the same rule in PyTorch."""

import sys
from types import ModuleType

import pytest
import torch

from amnesia_bench.modeling import PackedRows
from amnesia_bench.modeling.gated_delta_fla import (
    fla_delta_backward,
    fla_delta_forward,
    fla_delta_step,
)
from amnesia_bench.modeling.gated_delta_torch import DeltaInputs, torch_gated_delta

HEADS, KEYS, VALUES = 3, 8, 12


def _packed(cu_seqlens, tokens):
    if cu_seqlens is None:
        return None
    return PackedRows.from_cu_seqlens(cu_seqlens, tokens, torch.device("cpu"))


@pytest.fixture
def fla(monkeypatch):
    # Parameters of fla/ops/gated_delta_rule/{chunk,fused_recurrent}.py of 0.6.0 that we pass.
    def chunk_gated_delta_rule_fwd(
        q, k, v, g, beta, scale, initial_state, output_final_state, state_v_first=False,
        cu_seqlens=None, cp_context=None, chunk_indices=None, use_gate_in_kernel=False,
        A_log=None, dt_bias=None, chunk_size=64,
    ):  # fmt: skip
        assert output_final_state
        assert (cu_seqlens is None) == (chunk_indices is None)
        assert all(x.is_contiguous() for x in (q, k, v, g, beta))
        output, end = torch_gated_delta(
            DeltaInputs(q, k, v, g, beta), scale, initial_state, _packed(cu_seqlens, q.shape[1])
        )
        # `g` stands for its sums within chunks.
        return g, output, q.new_zeros(*q.shape[:3], chunk_size), end, initial_state, None

    def chunk_gated_delta_rule_bwd(
        q, k, v, g, beta, A, scale, initial_state, do, dht, state_v_first=False,
        cu_seqlens=None, cp_context=None, chunk_indices=None, use_gate_in_kernel=False,
        g_input=None, A_log=None, dt_bias=None, chunk_size=64,
    ):  # fmt: skip
        assert A.shape == (*q.shape[:3], chunk_size)
        leaves = [x.detach().requires_grad_() for x in (q, k, v, g, beta)]
        state = None if initial_state is None else initial_state.detach().requires_grad_()
        with torch.enable_grad():
            output, end = torch_gated_delta(
                DeltaInputs(*leaves), scale, state, _packed(cu_seqlens, q.shape[1])
            )
        roots, grads = ([output], [do]) if dht is None else ([output, end], [do, dht])
        wanted = leaves if state is None else [*leaves, state]
        dq, dk, dv, dg, db, *dh0 = torch.autograd.grad(roots, wanted, grads)
        return dq, dk, dv, db, dg, dh0[0] if dh0 else None, None, None

    def fused_recurrent_gated_delta_rule(
        q, k, v, g=None, gk=None, gv=None, beta=None, scale=None, initial_state=None,
        output_final_state=False, cu_seqlens=None,
    ):  # fmt: skip
        assert output_final_state
        return torch_gated_delta(DeltaInputs(q, k, v, g, beta), scale, initial_state, None)

    package, chunk = ModuleType("fla.ops.gated_delta_rule"), ModuleType("chunk")
    package.fused_recurrent_gated_delta_rule = fused_recurrent_gated_delta_rule
    chunk.chunk_gated_delta_rule_fwd = chunk_gated_delta_rule_fwd
    chunk.chunk_gated_delta_rule_bwd = chunk_gated_delta_rule_bwd
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", package)
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule.chunk", chunk)


def operands(batch, tokens, states):
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(rand(batch, tokens, HEADS, KEYS), dim=-1) for _ in "qk")
    v, decay = rand(batch, tokens, HEADS, VALUES), -rand(batch, tokens, HEADS).abs()
    state = rand(states, HEADS, KEYS, VALUES)
    return DeltaInputs(q, k, v, decay, rand(batch, tokens, HEADS).sigmoid()), state


@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("bounds", [None, [0, 60, 70, 200]])
def test_gradients_come_back_in_the_order_of_the_operands(fla, bounds, with_state):
    inputs, state = operands(1 if bounds else 2, 200, 3 if bounds else 2)
    state = state if with_state else None
    packed = None if bounds is None else _packed(torch.tensor(bounds), 200)
    documents = None
    if packed is not None:
        documents = (packed.cu_seqlens, packed.chunks.index)
    leaves = [x.clone().requires_grad_() for x in inputs]
    start = None if state is None else state.clone().requires_grad_()
    output, end = torch_gated_delta(DeltaInputs(*leaves), 0.3, start, packed)
    grads = torch.randn_like(output), torch.randn_like(end)
    wanted = torch.autograd.grad(
        [output, end], leaves if start is None else [*leaves, start], grads
    )
    result = fla_delta_forward(inputs, 0.3, state, documents)
    torch.testing.assert_close(result.output, output)
    torch.testing.assert_close(result.end, end)
    actual = fla_delta_backward(grads, inputs, result[2:], 0.3, state, documents)
    for x, y in zip(actual, wanted, strict=False):
        torch.testing.assert_close(x, y)
    assert actual[5].numel() == (0 if state is None else state.numel())


def test_one_token_runs_the_recurrent_kernel(fla):
    inputs, state = operands(2, 1, 2)
    expected = torch_gated_delta(inputs, 0.3, state, None)
    for x, y in zip(fla_delta_step(inputs, 0.3, state), expected, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("packed", [False, True])
def test_shapes_and_dtypes_of_the_op_and_of_its_gradients(packed):
    q, k = (torch.empty(1, 200, HEADS, KEYS, device="meta", dtype=torch.bfloat16) for _ in "qk")
    v = torch.empty(1, 200, HEADS, VALUES, device="meta", dtype=torch.bfloat16)
    decay, rate = (torch.empty(1, 200, HEADS, device="meta") for _ in "gb")
    leaves = [x.requires_grad_() for x in (q, k, v, decay, rate)]
    bounds = torch.empty(4, device="meta", dtype=torch.int32) if packed else None
    chunks = torch.empty(5, 2, device="meta", dtype=torch.int32) if packed else None
    output, end, *_ = torch.ops.amnesia_bench.gated_delta(*leaves, 0.3, None, bounds, chunks)
    assert output.dtype == torch.bfloat16
    assert end.dtype == torch.float32
    assert end.shape == (3 if packed else 1, HEADS, KEYS, VALUES)
    output.sum().backward()
    assert [x.grad.shape for x in leaves] == [x.shape for x in leaves]
    assert leaves[3].grad.dtype == torch.float32
