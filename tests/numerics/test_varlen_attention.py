"""Packed documents through torch's flash kernel: the call, and the same numbers as a loop."""

import itertools

import pytest
import torch
from torch.nn.attention import varlen

from amnesia_bench.modeling import PackedRows, causal_attention
from amnesia_bench.modeling.causal_attention import has_varlen_kernel, packed_sdpa
from tests.support.dispatch import DeviceWaits

BOUNDS = [0, 3, 40, 41, 60]


def _documents(qkv, cu_q, cu_k, max_q, max_k, causal, scale, window):
    """Yield the operands and the weights of each document, by what torch documents for its op."""
    q, k, v = qkv
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert isinstance(max_q, int)
    assert isinstance(max_k, int)
    assert causal == (window == [-1, 0])
    assert all(x.is_contiguous() for x in qkv)
    repeats = q.shape[1] // k.shape[1]
    for start, stop in itertools.pairwise(cu_q.tolist()):
        assert stop - start <= min(max_q, max_k)
        part = [x[start:stop].double().transpose(0, 1) for x in (q, k, v)]
        part[1:] = (x.repeat_interleave(repeats, dim=0) for x in part[1:])
        scale = q.shape[2] ** -0.5 if scale is None else scale
        distance = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
        before, after = (stop if side < 0 else side for side in window)
        hidden = (distance > before) | (-distance > after)
        logits = (part[0] @ part[1].mT * scale).masked_fill(hidden, -torch.inf)
        yield slice(start, stop), part, logits.softmax(dim=-1), scale


def _forward(q, k, v, *options):
    output, log_sums = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0]).float()
    for tokens, (_, _, values), weights, _ in _documents((q, k, v), *options[:7]):
        output[tokens] = (weights @ values).transpose(0, 1)
    return output, log_sums, torch.zeros(2, dtype=torch.uint64)


def _backward(grad, q, k, v, output, _log_sums, *options):
    cu_q, cu_k, max_q, max_k, causal, _, scale, window = options
    gradients = [torch.empty_like(x) for x in (q, k, v)]
    for tokens, part, weights, factor in _documents(
        (q, k, v), cu_q, cu_k, max_q, max_k, causal, scale, window
    ):
        upper = grad[tokens].double().transpose(0, 1)
        of_weights = upper @ part[2].mT
        of_logits = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * factor
        found = (of_logits @ part[1], of_logits.mT @ part[0], weights.mT @ upper)
        for gradient, rows in zip(gradients, found, strict=True):
            grouped = rows.unflatten(0, (gradient.shape[1], -1)).sum(1)
            gradient[tokens] = grouped.transpose(0, 1).to(gradient.dtype)
    return tuple(gradients)


@pytest.fixture(scope="module")
def _registered():
    """Give torch's ops, whose kernels exist on CUDA only, kernels for the CPU."""
    varlen._varlen_attn.register_kernel("cpu")(_forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(_backward)


@pytest.fixture
def _kernel_on_cpu(_registered, monkeypatch):
    monkeypatch.setattr(causal_attention, "has_varlen_kernel", lambda *_: True)


def _operands(dtype=torch.float32, heads=6, groups=2, size=16):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, BOUNDS[-1], count, size) for count in (heads, groups, groups)]
    rows = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return [row.transpose(1, 2).requires_grad_() for row in rows]


def _mixer(query, key):
    """Return the calling module, of which transformers reads the number of groups."""
    module = torch.nn.Module()
    module.num_key_value_groups = query.shape[1] // key.shape[1]
    return module


def _gradients(qkv, **options):
    packed = PackedRows.from_cu_seqlens(BOUNDS, BOUNDS[-1], torch.device("cpu"))
    output, _ = packed_sdpa(_mixer(*qkv[:2]), *qkv, None, packed=packed, **options)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    return output, *torch.autograd.grad((output * weights).sum(), qkv)


@pytest.mark.parametrize("scaling", [None, 0.7])
@pytest.mark.parametrize("window", [None, 1, 5, 100])
@pytest.mark.parametrize("groups", [2, 6])
def test_the_call_of_the_kernel_equals_documents_one_by_one(groups, window, scaling, request):
    options = {"scaling": scaling, "sliding_window": window}
    expected = _gradients(_operands(groups=groups), **options)
    request.getfixturevalue("_kernel_on_cpu")
    actual = _gradients(_operands(groups=groups), **options)
    for mine, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("_kernel_on_cpu")
def test_the_call_waits_for_nothing_on_the_device():
    packed = PackedRows.from_cu_seqlens(BOUNDS, BOUNDS[-1], torch.device("cpu"))
    with DeviceWaits() as waits:
        packed_sdpa(torch.nn.Module(), *_operands(), None, packed=packed, sliding_window=5)
    assert not {name for name in waits.counts if "tolist" not in name}


@pytest.mark.usefixtures("_kernel_on_cpu")
def test_compiled_code_is_valid_for_other_documents():
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph

    @torch.compile(backend=count, fullgraph=True)
    def attend(query, key, value, packed):
        return packed_sdpa(torch.nn.Module(), query, key, value, None, packed=packed)[0]

    with torch.no_grad():
        for bounds in ([0, 20, 60], [0, 25, 60], [0, 7, 60], [0, 50, 60], [0, 33, 60]):
            packed = PackedRows.from_cu_seqlens(bounds, 60, torch.device("cpu"))
            attend(*_operands(), packed)
    assert len(graphs) <= 2  # the second one takes the length of the longest document as a variable


def test_only_half_precision_on_cuda_has_the_kernel():
    assert not has_varlen_kernel(*(torch.empty(1, 2, 4, 64, dtype=torch.bfloat16),) * 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine")
@pytest.mark.parametrize("window", [None, 5])
def test_the_kernel_equals_documents_one_by_one_on_the_gpu(window, monkeypatch):
    def on_gpu():
        leaves = [x.detach().cuda().requires_grad_() for x in _operands(torch.bfloat16, size=64)]
        packed = PackedRows.from_cu_seqlens(BOUNDS, BOUNDS[-1], leaves[0].device)
        output, _ = packed_sdpa(
            _mixer(*leaves[:2]), *leaves, None, packed=packed, sliding_window=window
        )
        assert output.is_cuda
        return output, *torch.autograd.grad(output.float().square().sum(), leaves)

    assert has_varlen_kernel(*(torch.empty(1, 2, 4, 64, dtype=torch.bfloat16).cuda(),) * 2)
    actual = on_gpu()
    monkeypatch.setattr(causal_attention, "has_varlen_kernel", lambda *_: False)
    for mine, other in zip(actual, on_gpu(), strict=True):
        torch.testing.assert_close(mine.float(), other.float(), rtol=2e-2, atol=2e-2)
