"""The cache test at load time, with linear layers whose kernels multiply in TF32 as on a GPU."""

import pytest
import torch

from amnesia_bench.inference import language_model
from amnesia_bench.inference.language_model import prepare_model
from amnesia_bench.modeling import HypeNetForCausalLM, mixers
from amnesia_bench.modeling.named_configs import load_model_config

CHUNK = 64


def _cut(x):
    """Cut the last 13 bits of the mantissa, as tensor cores do with operands in float32."""
    return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def _rounded(x):
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def _chunked(qkv, log_decay, scale, state, to_tf32):
    """Compute lightning attention by chunks, with the products that fla's kernels compute."""
    q, k, v = (x.transpose(1, 2) for x in qkv)  # [B, H, T, D]
    rate = log_decay[:, None, None]
    state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3]) if state is None else state
    outputs = []
    for queries, keys, values in zip(*(x.split(CHUNK, dim=2) for x in (q, k, v)), strict=True):
        step = torch.arange(1, queries.shape[2] + 1).float()[:, None]
        queries, keys = to_tf32(queries), to_tf32(keys)
        scores = (queries @ keys.mT) * torch.exp(rate * (step - step.mT)).tril()
        from_state = (queries @ to_tf32(state)) * torch.exp(rate * step)
        outputs.append((from_state + to_tf32(scores) @ to_tf32(values)) * scale)
        to_end = torch.exp(rate * (len(step) - step))
        state = state * torch.exp(rate * len(step)) + keys.mT @ to_tf32(values * to_end)
    return torch.cat(outputs, dim=2).transpose(1, 2), state


@pytest.fixture(params=[_cut, _rounded], ids=["cut", "rounded"])
def _tf32_kernels(request, monkeypatch):
    exact = mixers.lightning_attention

    def lightning(q, k, v, log_decay, scale=None, state=None, packed=None):
        if q.shape[1] < CHUNK:  # the kernel for few tokens does not use tensor cores
            return exact(q, k, v, log_decay, scale, state, packed)
        assert packed is None
        scale = q.shape[3] ** -0.5 if scale is None else scale
        return _chunked((q, k, v), log_decay, scale, state, request.param)

    monkeypatch.setattr(mixers, "lightning_attention", lightning)


@pytest.fixture
def _on_cuda(monkeypatch):
    tolerance = language_model._tolerance
    monkeypatch.setattr(
        language_model, "_tolerance", lambda dtype, _: tolerance(dtype, torch.device("cuda"))
    )


def _prepared(size, spread):
    torch.manual_seed(1)
    config = load_model_config(size)
    config.initializer_range = spread
    return prepare_model(HypeNetForCausalLM(config).eval())


@pytest.mark.usefixtures("_tf32_kernels", "_on_cuda")
@pytest.mark.parametrize("spread", [0.02, 0.1])
@pytest.mark.parametrize("size", ["tiny", "laptop"])
def test_a_float32_model_keeps_all_capabilities_with_tf32_kernels(size, spread):
    model = _prepared(size, spread)
    assert model.full_reason is None
    assert model.chunked_prefill
    assert model.joins_rows


@pytest.mark.usefixtures("_on_cuda", "_tf32_kernels")
def test_a_lost_state_is_still_noticed(monkeypatch):
    rounded = mixers.lightning_attention

    def forgetful(q, k, v, log_decay, scale=None, state=None, packed=None):
        return rounded(q, k, v, log_decay, scale, None, packed)

    monkeypatch.setattr(mixers, "lightning_attention", forgetful)
    assert not _prepared("laptop", 0.02).chunked_prefill


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        (torch.float32, "cpu", 3.5e-4),
        (torch.float32, "cuda", 3.1e-2),
        (torch.float64, "cuda", 1.5e-8),
        (torch.bfloat16, "cuda", 8.8e-2),
    ],
)
def test_the_tolerance_is_that_of_the_products(dtype, device, expected):
    tolerance = language_model._tolerance(dtype, torch.device(device))
    assert tolerance == pytest.approx(expected, rel=0.02)
