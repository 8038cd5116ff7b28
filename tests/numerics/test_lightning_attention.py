"""The chunked form against the recurrence, in float64 and in float32."""

import math
import sys
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from amnesia_bench.modeling import alibi_log_decay, lightning_attention, lightning_torch
from amnesia_bench.modeling.input_errors import InvalidModelInputError
from tests.numerics.reference import recurrence

LENGTHS = [1, 2, 63, 64, 65, 128, 150]


def _operands(num_tokens: int, heads: int = 4, batch: int = 2, dtype=torch.float64, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, num_tokens, heads, 8)
    q, k = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    v = torch.randn((*shape[:3], 5), generator=generator, dtype=dtype)
    state = torch.randn((batch, heads, 8, 5), generator=generator, dtype=dtype)
    return q, k, v, state


def _gradients(outputs: tuple[Tensor, Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    loss = sum(
        (x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in outputs
    )
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("heads", [4, 6, 16, 24])
@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_outputs_states_and_gradients_equal_the_recurrence_in_float64(num_tokens, heads):
    q, k, v, state = _operands(num_tokens, heads)
    decay = alibi_log_decay(heads).double()
    inputs = [x.requires_grad_() for x in (q, k, v, decay, state)]
    chunked = lightning_attention(q, k, v, decay, 0.3, state)
    slow = recurrence(q, k, v, decay, 0.3, state)
    for ours, theirs in zip(chunked, slow, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    for ours, theirs in zip(_gradients(chunked, inputs), _gradients(slow, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("states_at_once", [2**18, 0], ids=["chunks_together", "one_by_one"])
@pytest.mark.parametrize("num_tokens", [*LENGTHS, 64 * 16, 64 * 17 + 3])
def test_form_without_autograd_equals_the_recorded_one(num_tokens, states_at_once, monkeypatch):
    monkeypatch.setattr(lightning_torch, "_SPAN_STATE_NUMBERS", states_at_once)
    q, k, v, state = _operands(num_tokens, heads=6)
    kept = state.clone()
    decay = alibi_log_decay(6)
    plain = lightning_attention(q, k, v, decay, 0.3, state)
    recorded = lightning_attention(q.requires_grad_(), k, v, decay, 0.3, state)
    for ours, theirs in zip(plain, recorded, strict=True):
        assert not ours.requires_grad
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert torch.equal(state, kept)


def test_gradcheck_with_two_documents():
    q, k, v, state = _operands(9, heads=2, batch=1)
    state = torch.cat([state, state * 0.5])
    decay = alibi_log_decay(2).double()
    inputs = tuple(x.requires_grad_() for x in (q, k, v, state))
    assert torch.autograd.gradcheck(
        lambda q, k, v, s: lightning_attention(q, k, v, decay, 0.5, s, [0, 4, 9]), inputs
    )


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize(
    "bounds", [[0, 150], [0, 1, 150], [0, 64, 65, 129, 150], [0, 3, 10, 149, 150]]
)
def test_packed_documents_equal_separate_calls_bit_for_bit(bounds, record):
    q, k, v, _ = _operands(150, batch=1, dtype=torch.float32)
    documents = list(pairwise(bounds))
    states = torch.randn(len(documents), 4, 8, 5, generator=torch.Generator().manual_seed(3))
    decay = alibi_log_decay(4)
    inputs = [x.requires_grad_(record) for x in (q, k, v)]
    packed, final = lightning_attention(q, k, v, decay, None, states, torch.tensor(bounds))
    if record:
        gradients = torch.autograd.grad(packed.square().sum(), inputs)
        # Another order of memory would be another order of the sums behind it.
        assert all(gradient.is_contiguous() for gradient in gradients)
    for n, (start, stop) in enumerate(documents):
        alone = [x[:, start:stop].detach().requires_grad_(record) for x in inputs]
        output, state = lightning_attention(*alone, decay, None, states[n : n + 1])
        assert torch.equal(packed[:, start:stop], output)
        assert torch.equal(final[n], state[0])
        if record:
            own = torch.autograd.grad(output.square().sum(), alone)
            for ours, theirs in zip(gradients, own, strict=True):
                torch.testing.assert_close(ours[:, start:stop], theirs, rtol=0, atol=1e-6)


def test_a_packed_document_sees_nothing_of_another():
    q, k, v, _ = _operands(40, batch=1)
    before, _ = lightning_attention(q, k, v, alibi_log_decay(4), None, None, [0, 15, 40])
    v = v.clone()
    v[:, 3] += 100
    after, _ = lightning_attention(q, k, v, alibi_log_decay(4), None, None, [0, 15, 40])
    assert not torch.equal(before[:, :15], after[:, :15])
    assert torch.equal(before[:, 15:], after[:, 15:])


@pytest.mark.parametrize("cut", [1, 64, 100, 128])
def test_state_continues_a_sequence(cut):
    q, k, v, state = _operands(150, dtype=torch.float32)
    decay = alibi_log_decay(4)
    whole, end = lightning_attention(q, k, v, decay, None, state)
    first, middle = lightning_attention(q[:, :cut], k[:, :cut], v[:, :cut], decay, None, state)
    second, last = lightning_attention(q[:, cut:], k[:, cut:], v[:, cut:], decay, None, middle)
    parts = torch.cat([first, second], dim=1)
    if cut % 64 == 0:  # the same chunks: the same bits
        assert torch.equal(parts, whole)
        assert torch.equal(last, end)
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-5)
    torch.testing.assert_close(last, end, rtol=0, atol=2e-5)


def test_long_gaps_neither_overflow_nor_lose_the_fast_heads():
    q, k, v, _ = _operands(2000, heads=16, batch=1, dtype=torch.float32)
    output, state = lightning_attention(q, k, v, alibi_log_decay(16))
    slow, end = recurrence(q.double(), k.double(), v.double(), alibi_log_decay(16), 8**-0.5)
    torch.testing.assert_close(output.double(), slow, rtol=0, atol=5e-5)
    torch.testing.assert_close(state.double(), end, rtol=0, atol=5e-5)


def test_state_stays_float32_under_bfloat16_and_autocast():
    q, k, v, _ = _operands(70, dtype=torch.bfloat16)
    output, state = lightning_attention(q, k, v, alibi_log_decay(4))
    assert (output.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    q, k, v = (x.float() for x in (q, k, v))
    plain = lightning_attention(q, k, v, alibi_log_decay(4))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = lightning_attention(q, k, v, alibi_log_decay(4))[0]
    assert torch.equal(plain, cast)


def test_decays_are_alibis_slopes():
    sixteen = -alibi_log_decay(16)
    assert sixteen[0] == pytest.approx(2**-0.5, rel=1e-6)
    assert sixteen[-1] == 2**-8
    thirty_two = -alibi_log_decay(32)
    assert thirty_two[0] == pytest.approx(0.8409, abs=1e-4)
    # Six heads: the series of 4, then every other slope of the series of 8.
    expected = [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]
    assert (-alibi_log_decay(6)).tolist() == pytest.approx(expected)
    assert math.exp(alibi_log_decay(16)[0]) == pytest.approx(0.493, abs=1e-3)


def test_fla_is_not_imported_on_a_cpu():
    q, k, v, _ = _operands(8)
    lightning_attention(q, k, v, alibi_log_decay(4))
    assert sys.modules.get("fla") is None


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ([0, 5, 5, 10], "cu_seqlens is not increasing: entry 2 is 5 after 5"),
        ([0, 7, 5, 10], "cu_seqlens is not increasing: entry 2 is 5 after 7"),
        ([0, 5], "cu_seqlens ends at 5, but the row has 10 tokens"),
        ([0, 5, 12], "cu_seqlens ends at 12, but the row has 10 tokens"),
        ([1, 10], "must start with 0"),
        ([0], "must start with 0"),
        ([[0, 10]], "cu_seqlens has 2 dimensions"),
    ],
)
def test_bad_boundaries_are_refused(bounds, message):
    q, k, v, _ = _operands(10, batch=1)
    with pytest.raises(InvalidModelInputError, match=message):
        lightning_attention(q, k, v, alibi_log_decay(4), cu_seqlens=torch.tensor(bounds))


def test_shapes_that_do_not_fit_are_refused():
    q, k, v, state = _operands(10)
    decay = alibi_log_decay(4)
    for call, message in (
        (lambda: lightning_attention(q, k[:, :5], v, decay), "q, k, v have shapes"),
        (lambda: lightning_attention(q[:, :0], k[:, :0], v[:, :0], decay), "q is empty"),
        (lambda: lightning_attention(q, k, v, alibi_log_decay(3)), "log_decay has shape"),
        (lambda: lightning_attention(q, k, v, decay, None, state[:1]), "initial_state has shape"),
        (lambda: lightning_attention(q, k, v, decay, cu_seqlens=[0, 10]), "a batch of 2 rows"),
    ):
        with pytest.raises(InvalidModelInputError, match=message):
            call()
