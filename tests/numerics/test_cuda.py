"""fla's kernels and the whole model on a GPU, against the PyTorch form and the CPU."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention.bias import CausalBias
from transformers import AutoModelForCausalLM

from amnesia_bench.inference.protocol import EngineOptions
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.modeling import (
    HypeNetCache,
    HypeNetForCausalLM,
    alibi_log_decay,
    causal_attention,
    lightning_attention,
)
from amnesia_bench.modeling.lightning_attention import fla_is_installed
from amnesia_bench.modeling.named_configs import load_model_config
from amnesia_bench.modeling.numerics import use_exact_float32
from tests.numerics.conftest import GOLDEN, random_ids
from tests.numerics.reference import recurrence
from tests.support.tiny_models import needle_prompts, requests_of, tiny_model, tiny_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine"),
    pytest.mark.skipif(not fla_is_installed(), reason="flash-linear-attention is not installed"),
]
# In Triton's interpreter (test_fla_interpreted.py), float32 errors are below 1e-6, and outputs,
# states and dq of bfloat16 are within this tolerance. Products in TF32 would miss that of float32
# (emulated by cutting operands: 1e-4 for outputs, 1e-3 for gradients). No GPU has run this yet.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


def _operands(num_tokens, dtype, heads=8, size=64, states=1):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.nn.functional.normalize(
            torch.randn(1, num_tokens, heads, size, generator=generator), dim=-1
        )
        for _ in range(3)
    )
    state = torch.randn(states, heads, size, size, generator=generator) * 0.1
    return [x.cuda().to(dtype).requires_grad_() for x in (q, k, v)], state.cuda()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_tokens", [1, 63, 64, 500, 2048])
def test_fla_equals_the_recurrence_forward_and_backward(num_tokens, dtype):
    (q, k, v), state = _operands(num_tokens, dtype)
    decay = alibi_log_decay(8).cuda()
    output, end = lightning_attention(q, k, v, decay, None, state)
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    slow, slow_end = recurrence(*exact, decay.double(), 64**-0.5, state.double())
    limits = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(output.double(), slow, **limits)
    torch.testing.assert_close(end.double(), slow_end, **limits)
    weights = torch.randn_like(slow)
    ours = torch.autograd.grad((output * weights).sum(), [q, k, v])
    theirs = torch.autograd.grad((slow * weights).sum(), exact)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.double(), other, **limits)


@pytest.mark.parametrize("documents", [1, 3, 17, 64])
def test_fla_keeps_documents_apart(documents):
    generator = torch.Generator().manual_seed(documents)
    cuts = torch.randperm(1999, generator=generator)[: documents - 1].sort().values + 1
    bounds = [0, *cuts.tolist(), 2000]
    (q, k, v), states = _operands(2000, torch.float32, states=documents)
    decay = alibi_log_decay(8).cuda()
    output, ends = lightning_attention(q, k, v, decay, None, states, bounds)
    gradients = torch.autograd.grad(output.square().sum(), [q, k, v])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    for n in range(documents):
        part = slice(bounds[n], bounds[n + 1])
        alone = [x[:, part].detach().requires_grad_() for x in (q, k, v)]
        expected, end = lightning_attention(*alone, decay, None, states[n : n + 1])
        torch.testing.assert_close(output[:, part], expected, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(ends[n], end[0], rtol=2e-3, atol=2e-3)
        own = torch.autograd.grad(expected.square().sum(), alone)
        for mine, other in zip(gradients, own, strict=True):
            torch.testing.assert_close(mine[:, part], other, rtol=2e-3, atol=2e-3)


@torch.no_grad()
def test_golden_logits_on_the_gpu():
    reference = load_file(GOLDEN / "reference.safetensors")
    model = AutoModelForCausalLM.from_pretrained(GOLDEN).cuda().eval()
    # With products in TF32, the logits would differ by 2.5e-3 (emulated by cutting operands).
    use_exact_float32()
    logits = model(reference["input_ids"].cuda()).logits.cpu()
    torch.testing.assert_close(logits, reference["logits"], rtol=2e-3, atol=2e-3)


@torch.no_grad()
def test_ragged_batch_equals_single_rows_on_the_gpu(make_model):
    model = make_model(initializer_range=0.1).cuda()
    ids, mask = random_ids(3, 90).cuda(), torch.ones(3, 90).long().cuda()
    mask[1, :50] = 0
    mask[2, :89] = 0
    batched = model(ids, attention_mask=mask).logits
    for row in range(3):
        alone = model(ids[row, mask[row].bool()][None]).logits[0]
        torch.testing.assert_close(batched[row, mask[row].bool()], alone, rtol=2e-3, atol=2e-3)


@torch.inference_mode()
@pytest.mark.parametrize("num_tokens", [16 * 1024, 256 * 1024])
def test_long_prefill_of_2b_is_finite(num_tokens):
    config = load_model_config("2b")
    with torch.device("cuda"):
        model = HypeNetForCausalLM(config).to(torch.bfloat16).eval()
    cache = HypeNetCache(config)
    ids = torch.randint(0, config.vocab_size, (1, num_tokens), device="cuda")
    logits = model(ids, past_key_values=cache, logits_to_keep=1).logits
    assert torch.isfinite(logits).all()
    assert cache.get_seq_length() == num_tokens


@torch.inference_mode()
def test_a_prefill_in_pieces_makes_no_mask_on_the_gpu(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a mask was made")

    monkeypatch.setattr(causal_attention, "sdpa_mask", refuse)
    monkeypatch.setattr(CausalBias, "_materialize", refuse)
    config = load_model_config("2b")
    with torch.device("cuda"):
        model = HypeNetForCausalLM(config).to(torch.bfloat16).eval()
    ids = torch.randint(0, config.vocab_size, (1, 10_000), device="cuda")
    cache = HypeNetCache(config)
    for part in ids.split(2048, dim=1):
        last = model(part, past_key_values=cache, logits_to_keep=1).logits
    whole = model(ids, logits_to_keep=1).logits
    assert (last - whole).float().norm() < 0.09 * whole.float().norm()


@pytest.mark.parametrize("name", ["hypenet", "qwen2", "mistral_sliding"])
def test_shared_prefixes_change_no_answer_on_the_gpu(name):
    requests = requests_of(needle_prompts(12, 2000, depths=6), new=6)
    answers = []
    for share in (True, False):
        options = EngineOptions(
            device="cuda", share_prefixes=share, prefill_chunk_tokens=128, max_rows=1
        )
        engine = TransformersEngine(tiny_model(name).cuda(), tiny_tokenizer(), options)
        # Without this, the test would compare full prompts with full prompts.
        assert engine.settings["prefixes"] == ("shared" if share else "full")
        answers.append({each.key: each for each in engine.generate(requests)})
    assert answers[0] == answers[1]
