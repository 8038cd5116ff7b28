"""The custom op of lightning attention on a CPU: its registrations, its gradients, its graphs."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from amnesia_bench.modeling import (
    HypeNetForCausalLM,
    PackedRows,
    alibi_log_decay,
    lightning_attention,
)
from amnesia_bench.modeling.lightning_attention import fla_ops_on_every_device
from amnesia_bench.modeling.named_configs import load_model_config
from amnesia_bench.modeling.token_layout import TokenInputs, lay_out

CPU = torch.device("cpu")
BOUNDS = [None, (0, 100), (0, 5, 90, 200), (0, 1, 2, 50)]


def _operands(bounds, with_state, dtype=torch.float32, heads=3, size=16):
    generator = torch.Generator().manual_seed(0)
    rows, tokens = (2, 70) if bounds is None else (1, bounds[-1])
    states = rows if bounds is None else len(bounds) - 1
    qkv = [torch.randn(rows, tokens, heads, size, generator=generator).to(dtype) for _ in range(3)]
    state = torch.randn(states, heads, size, size, generator=generator) if with_state else None
    return qkv, state


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_both_ops_pass_the_checks_of_torch(bounds, with_state, dtype):
    """Schema, autograd registration, and shapes, dtypes, strides of fake results."""
    qkv, state = _operands(bounds, with_state, dtype)
    qkv = [x.requires_grad_() for x in qkv]
    rows = (None, None, None)
    if bounds is not None:
        packed = PackedRows.from_bounds(bounds, CPU)
        rows = (packed.cu_seqlens, packed.chunks.index, packed.chunks.offsets)
    state = None if state is None else state.requires_grad_()
    arguments = (*qkv, alibi_log_decay(3), 0.3, state, *rows)
    ops = torch.ops.amnesia_bench
    torch.library.opcheck(ops.lightning.default, arguments)
    detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    grad_state = None if state is None else torch.randn_like(state)
    gradients = (torch.randn_like(qkv[2]), grad_state)
    # There is no second derivative, so nothing about autograd can be checked.
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        ops.lightning_backward.default, (*gradients, *detached), test_utils=checks
    )


@pytest.mark.parametrize("use_end", [True, False])
@pytest.mark.parametrize("with_state", [True, False])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_op_equals_autograd_through_pytorch(bounds, with_state, use_end):
    """The op's gradients are a formula; in float64, autograd differentiates the forward pass."""
    qkv, state = _operands(bounds, with_state)
    inputs = [*qkv, state] if with_state else qkv
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype).requires_grad_() for x in inputs]
        with fla_ops_on_every_device():
            output, end = lightning_attention(
                *leaves[:3], alibi_log_decay(3), 0.3, leaves[3] if with_state else None, bounds
            )
        assert ("amnesia_bench_lightning" in output.grad_fn.name()) == (dtype == torch.float32)
        loss = (output * torch.linspace(0, 1, output.numel()).view_as(output)).sum()
        if use_end:
            loss = loss + (end * torch.linspace(-1, 1, end.numel()).view_as(end)).sum()
        results.append([output, end, *torch.autograd.grad(loss, leaves)])
    for ours, exact in zip(*results, strict=True):
        assert (ours - exact).norm() < 1e-6 * exact.norm()


def _inputs_of_layers(model, x, bounds):
    packed = PackedRows.from_bounds(bounds, CPU)
    tokens = TokenInputs(1, x.shape[1], 0, CPU, None, None, packed, False)
    return model.model._mixer_inputs(x, lay_out(tokens, model.config), None, False)


def test_a_lightning_block_is_one_graph_and_outlives_other_boundaries():
    model = HypeNetForCausalLM(load_model_config("tiny")).train()
    x = torch.randn(1, 128, model.config.hidden_size)
    layer = model.model.layers[0]
    with fla_ops_on_every_device():
        found = torch._dynamo.explain(layer)(x, _inputs_of_layers(model, x, (0, 50, 128)))
        assert (found.graph_count, found.graph_break_count) == (1, 0)
        called = {str(node.target) for node in found.graphs[0].graph.nodes}
        assert "amnesia_bench.lightning.default" in called
        torch._dynamo.reset()
        counter = CompileCounter()
        compiled = torch.compile(layer, backend=counter, fullgraph=True)
        for bounds in [(0, 50, 128), (0, 70, 128), (0, 3, 70, 128), (0, 1, 2, 64, 128), (0, 128)]:
            compiled(x, _inputs_of_layers(model, x, bounds))
        # The second number of documents makes their number dynamic. One document is a special
        # case of PyTorch, as all sizes of 1 are.
        assert counter.frame_count <= 3
