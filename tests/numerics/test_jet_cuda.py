"""Jet-Nemotron on a GPU, by fla's kernels, against the same model in PyTorch on a CPU."""

import copy

import pytest
import torch

from amnesia_bench.modeling.lightning_attention import fla_is_installed
from tests.numerics.conftest import random_ids
from tests.support.jet import JET_SHAPES, jet_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine"),
    pytest.mark.skipif(not fla_is_installed(), reason="flash-linear-attention is not installed"),
]
# JetBlock heads whose values are wider than their keys, as published.
WIDE = JET_SHAPES["published_expand"] | {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "layer_types": ["jet", "attn", "swa", "jet"],
}
# fla multiplies float32 operands in TF32, which has 10 bits.
TOLERANCE = 2e-2


def close(actual, expected):
    return (actual.cpu().float() - expected).norm() <= TOLERANCE * expected.norm()


@pytest.mark.parametrize("bounds", [None, [0, 1, 40, 300]])
def test_logits_and_gradients(bounds):
    model = jet_model(WIDE).train()
    on_gpu = copy.deepcopy(model).cuda()
    ids = random_ids(1 if bounds else 2, 300)
    for each, device in ((model, "cpu"), (on_gpu, "cuda")):
        output = each(ids.to(device), cu_seqlens=bounds, labels=ids.to(device))
        output.loss.backward()
    assert close(on_gpu(ids.cuda(), cu_seqlens=bounds).logits, model(ids, cu_seqlens=bounds).logits)
    for (name, x), y in zip(model.named_parameters(), on_gpu.parameters(), strict=True):
        assert close(y.grad, x.grad), name


def test_decoding_continues_the_prefill():
    model = jet_model(WIDE).cuda()
    ids = random_ids(2, 120).cuda()
    with torch.no_grad():
        whole = model(ids).logits
        cache = model(ids[:, :100], use_cache=True).past_key_values
        steps = [
            model(ids[:, t : t + 1], past_key_values=cache, use_cache=True).logits
            for t in range(100, 120)
        ]
    assert close(torch.cat(steps, dim=1), whole[:, 100:].cpu())
