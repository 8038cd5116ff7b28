"""Jet-Nemotron: the authors' golden outputs, and its formulas token by token in float64."""

import itertools

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from amnesia_bench.modeling import HypeNetCache, JetNemotronForCausalLM
from amnesia_bench.modeling.gated_delta import gated_delta_rule
from amnesia_bench.modeling.gated_delta_torch import DeltaInputs
from tests.numerics.conftest import random_ids
from tests.numerics.jet_reference import jet_logits
from tests.support.jet import JET_SHAPES, jet_model
from tests.support.shared import shared_path
from tests.support.transformers_release import is_before

TOLERANCE = 2e-5
# The same formulas with other float32 matrix products differ by up to 3.4e-5 from these outputs.
FLOAT32_TOLERANCE = 6e-5


@pytest.fixture(scope="module")
def golden():
    folder = shared_path("golden", "jet_nemotron_pico")
    return folder, load_file(folder / "reference.safetensors")


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def golden_model(request, golden):
    loaded = AutoModelForCausalLM.from_pretrained(golden[0], attn_implementation=request.param)
    assert type(loaded) is JetNemotronForCausalLM
    return loaded.eval()


@pytest.fixture(scope="module")
def golden_models(golden):
    """The golden model in float32 and in float64."""
    return [
        JetNemotronForCausalLM.from_pretrained(golden[0], dtype=dtype).eval()
        for dtype in (torch.float32, torch.float64)
    ]


def in_chunks(model, ids, chunk):
    """The logits of `ids`, prefilled in chunks of this many tokens."""
    cache, parts = HypeNetCache(model.config), []
    for part in ids.split(chunk, dim=1):
        parts.append(model(part, past_key_values=cache, use_cache=True).logits)
    assert cache.get_seq_length() == ids.shape[1]
    return torch.cat(parts, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 23, 25, 64, 150])
def test_golden_logits_in_chunks(golden, golden_models, chunk):
    ids, expected = golden[1]["input_ids"], golden[1]["logits"]
    for model, tolerance in zip(golden_models, (FLOAT32_TOLERANCE, TOLERANCE), strict=True):
        assert (in_chunks(model, ids, chunk) - expected).abs().max() <= tolerance


@torch.no_grad()
def test_golden_logits_of_one_pass_and_of_decoding(golden, golden_model):
    ids, greedy = golden[1]["input_ids"], golden[1]["greedy"]
    logits = golden_model(torch.cat([ids, greedy], dim=1)).logits
    assert (logits[:, : ids.shape[1]] - golden[1]["logits"]).abs().max() <= FLOAT32_TOLERANCE
    assert (logits[:, ids.shape[1] :] - golden[1]["decode_logits"]).abs().max() <= FLOAT32_TOLERANCE


@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 33}, {"use_cache": False}])
def test_golden_greedy_continuation(golden, golden_model, options):
    ids, greedy = golden[1]["input_ids"], golden[1]["greedy"]
    generated = golden_model.generate(ids, max_new_tokens=16, do_sample=False, **options)
    assert torch.equal(generated[:, ids.shape[1] :], greedy)


@torch.no_grad()
@pytest.mark.parametrize("shape", JET_SHAPES)
def test_every_shape_agrees_with_its_formulas(shape):
    model = jet_model(shape).double()
    ids = random_ids(1, 70)
    expected = jet_logits(JET_SHAPES[shape], model.state_dict(), ids[0].tolist())
    for logits in (model(ids).logits, in_chunks(model, ids, 1), in_chunks(model, ids, 29)):
        torch.testing.assert_close(logits[0], expected, rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right", "middle"])
@pytest.mark.parametrize(
    ("shape", "implementation"),
    [("base", "eager"), ("base", "causal_sdpa"), ("sliding_first", "sdpa"), ("seven_taps", "sdpa")],
)
def test_padded_rows_are_the_rows_alone(shape, side, implementation):
    model = jet_model(shape).double()
    model.set_attn_implementation(implementation)
    lengths, total = [70, 2, 41], 70
    rows = [random_ids(1, length, seed=n)[0] for n, length in enumerate(lengths)]
    ids, mask = torch.zeros(3, total, dtype=torch.long), torch.zeros(3, total, dtype=torch.long)
    for n, row in enumerate(rows):
        at = torch.arange(len(row))
        if side == "left":
            at = at + total - len(row)
        elif side == "middle":
            at = torch.where(at < len(row) // 2, at, at + total - len(row))
        ids[n, at], mask[n, at] = row, 1
    new = random_ids(3, 5, seed=9)
    alone = [model(torch.cat([row, more])[None]).logits[0] for row, more in zip(rows, new)]  # noqa: B905
    for chunk in (1, 16) if side == "left" else (total,):
        cache, parts = HypeNetCache(model.config), []
        for start in range(0, total, chunk):
            stop = min(start + chunk, total)
            part = model(ids[:, start:stop], mask[:, :stop], past_key_values=cache, use_cache=True)
            parts.append(part.logits)
        logits = torch.cat(parts, dim=1)
        longer = mask
        for step in range(5):
            longer = torch.cat([longer, torch.ones(3, 1, dtype=torch.long)], dim=1)
            token = new[:, step : step + 1]
            part = model(token, longer, past_key_values=cache, use_cache=True).logits
            logits = torch.cat([logits, part], dim=1)
        for n, expected in enumerate(alone):
            actual = logits[n][longer[n].bool()]
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", ["base", "jet_only", "sliding_first", "seven_taps"])
def test_packed_documents_are_the_documents_alone(shape, implementation):
    if (shape, implementation) == ("sliding_first", "eager") and is_before("5.23"):
        pytest.skip("before 5.23, transformers sizes eager masks by a layer without a window")
    model = jet_model(shape).double().train()
    model.set_attn_implementation(implementation)
    bounds = [0, 1, 3, 70, 72, 150]
    ids = random_ids(1, bounds[-1])
    weights = torch.randn(bounds[-1], 97, dtype=torch.float64)
    packed = model(ids, cu_seqlens=bounds).logits[0]
    (packed * weights).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    alone = torch.cat([model(ids[:, a:b]).logits[0] for a, b in itertools.pairwise(bounds)])
    (alone * weights).sum().backward()
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-9)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-7, msg=name)


@torch.no_grad()
def test_attention_weights_of_sliding_layers_are_zero_outside_the_window():
    model = jet_model("base")
    weights = model(random_ids(2, 30), output_attentions=True).attentions
    assert [w is None for w in weights] == [True, False, False, True]
    distance = torch.arange(30)[:, None] - torch.arange(30)
    seen = (weights[2] > 0).all(dim=0).all(dim=0)
    assert torch.equal(seen, (distance >= 0) & (distance < 9))


@torch.no_grad()
def test_a_snapshot_can_be_resumed_several_times():
    model = jet_model("sliding_first").double()
    ids, cache = random_ids(1, 100), HypeNetCache(model.config)
    model(ids[:, :60], past_key_values=cache)
    early = cache.snapshot()
    model(ids[:, 60:80], past_key_values=cache)
    late, expected = cache.snapshot(), model(ids).logits
    for snapshot in (late, late, early, early):
        cache.resume(snapshot)
        assert cache.get_seq_length() == snapshot.length
        logits = model(ids[:, snapshot.length :], past_key_values=cache).logits
        torch.testing.assert_close(logits, expected[:, snapshot.length :], rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("rows", [3, [2, 0]])
def test_rows_of_the_cache_can_be_chosen(rows):
    model = jet_model("sliding_first").double()
    ids, cache = random_ids(3, 90), HypeNetCache(model.config)
    model(ids[:, :80], past_key_values=cache)
    if isinstance(rows, int):
        cache.batch_repeat_interleave(rows)
        chosen = ids.repeat_interleave(rows, dim=0)
    else:
        cache.batch_select_indices(torch.tensor(rows))
        chosen = ids[rows]
    logits = model(chosen[:, 80:], past_key_values=cache).logits
    torch.testing.assert_close(logits, model(chosen).logits[:, 80:], rtol=0, atol=1e-9)


def test_the_cache_of_a_window_does_not_grow():
    model = jet_model("base")
    cache = HypeNetCache(model.config)
    with torch.no_grad():
        for part in random_ids(2, 300).split(50, dim=1):
            model(part, past_key_values=cache)
    keys = cache.layers[2].keys
    assert keys.shape[2] == 8
    assert keys.untyped_storage().nbytes() == keys.numel() * 4
    assert cache.layers[0].tail.untyped_storage().nbytes() == 2 * 3 * 48 * 4


def delta_inputs(batch, tokens, dtype=torch.float64, *, erasing=False):
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(rand(batch, tokens, 3, 8), dim=-1) for _ in range(2))
    decay = -rand(batch, tokens, 3).abs() * (torch.tensor(0.1, dtype=torch.float64))
    if erasing:
        decay[:, ::7] = -5000.0
    operands = DeltaInputs(
        q, k, rand(batch, tokens, 3, 12), decay, rand(batch, tokens, 3).sigmoid()
    )
    return operands.to(dtype)


def delta_recurrence(inputs, state):
    outputs = []
    for q, k, v, decay, rate in zip(*(x.unbind(1) for x in inputs), strict=True):
        state = state * decay.exp()[..., None, None]
        predicted = torch.einsum("bhk,bhkv->bhv", k, state)
        correction = rate[..., None] * (v - predicted)
        state = state + torch.einsum("bhk,bhv->bhkv", k, correction)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q, state) * k.shape[-1] ** -0.5)
    return torch.stack(outputs, dim=1), state


@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 200, 2049])
def test_the_delta_rule_in_chunks_is_its_recurrence(tokens):
    inputs = delta_inputs(2, tokens)
    state = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    expected, end = delta_recurrence(inputs, state)
    output, last = gated_delta_rule(inputs, initial_state=state)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(last, end, rtol=0, atol=1e-12)


def test_the_delta_rule_is_exact_after_a_token_that_erases_the_state():
    inputs = delta_inputs(1, 130, erasing=True)
    state = torch.zeros(1, 3, 8, 12, dtype=torch.float64)
    expected = delta_recurrence(inputs, state)[0]
    output = gated_delta_rule(inputs.to(torch.float32))[0]
    assert (output - expected).abs().max() < 2e-6


def test_the_delta_rule_has_the_gradients_of_its_recurrence():
    inputs = delta_inputs(1, 100, erasing=True)
    state = torch.randn(1, 3, 8, 12, dtype=torch.float64)
    for tensor in (*inputs, state):
        tensor.requires_grad_()
    weights = torch.randn(1, 100, 3, 12, dtype=torch.float64)
    expected, end = delta_recurrence(inputs, state)
    wanted = torch.autograd.grad((expected * weights).sum() + end.sum(), (*inputs, state))
    output, last = gated_delta_rule(inputs, initial_state=state)
    actual = torch.autograd.grad((output * weights).sum() + last.sum(), (*inputs, state))
    for x, y in zip(actual, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-10)
