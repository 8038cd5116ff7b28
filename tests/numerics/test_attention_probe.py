"""The probe against full matrices and autograd, in float64, for every kind of attention."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from amnesia_bench.analysis.consumers import DistanceHistogram, HeadStatistics, PooledMaps
from amnesia_bench.analysis.models import measured, open_model
from amnesia_bench.analysis.probe import probing
from amnesia_bench.analysis.row_blocks import sums_by_distance
from amnesia_bench.errors import UserError
from amnesia_bench.records.roles import LayerKind
from tests.numerics.conftest import random_ids
from tests.support.full_attention import LOWEST, full_logits, histogram
from tests.support.pico import PICOS, build
from tests.support.tiny_models import tiny_model

TOKENS = 37
# HypeNet has a logit scale; Llama RoPE and GQA; Mistral and Gemma windows; Qwen3-Next gates and
# linear layers; GPT-NeoX as many key heads as query heads.
FAMILIES = (
    *("hypenet", "llama", "mistral_window", "gemma3", "qwen3", "qwen3_next", "gpt_neox", "phi3"),
    *("olmo_hybrid", "recurrent_gemma"),
)


def _double(family):
    model = tiny_model(family).double()
    model.set_experts_implementation("eager")  # the fast one knows no float64
    return model


def _packed(model, bounds):
    """Positions that restart are documents to every model; HypeNet is also given boundaries."""
    if model.config.model_type == "hypenet":
        return {"cu_seqlens": bounds}
    lengths = [stop - start for start, stop in itertools.pairwise(bounds)]
    return {"position_ids": torch.cat([torch.arange(n) for n in lengths])[None]}


def _inputs(kind, model):
    ids = random_ids(1 if kind == "packed" else 2, TOKENS) % 96
    if kind == "packed":
        return ids, _packed(model, [0, 5, 6, 29, TOKENS])
    if kind == "whole":
        return ids, {}
    mask = torch.ones_like(ids)
    mask[1, slice(9) if kind == "left" else slice(25, None)] = 0
    return ids, {"attention_mask": mask}


def _loss(model, ids, options):
    logits = model(ids, use_cache=False, **options).logits
    targets = ids[:, 1:].clone()
    if (mask := options.get("attention_mask")) is not None:
        targets[(mask[:, 1:] * mask[:, :-1]) == 0] = -100
    return torch.nn.functional.cross_entropy(logits[:, :-1].mT, targets, reduction="sum")


def _by_distance(matrices):
    """Sums by distance of the matrices of a layer: one, or one per packed document."""
    sums = [histogram(each) for each in matrices]
    return sum(torch.nn.functional.pad(each, (0, TOKENS - len(each))) for each in sums)


CASES = [(family, "whole") for family in FAMILIES] + [
    (family, kind)
    for kind in ("left", "right", "packed")
    for family in ("hypenet", "llama", "mistral_window", "gemma3", "qwen3")
]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_gradients_by_distance_are_those_of_autograd(family, kind):
    model = _double(family)
    ids, options = _inputs(kind, model)
    with full_logits(model) as logits:
        expected_loss = _loss(model, ids, options)
        expected_loss.backward()
        expected = {k: _by_distance([s.grad.abs() for s in calls]) for k, calls in logits.items()}
        visible = {k: [(s[:, :1] > LOWEST).double() for s in v] for k, v in logits.items()}
        pairs = {layer: _by_distance(calls) for layer, calls in visible.items()}
    of_parameters = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    seen = DistanceHistogram(4, TOKENS)
    with probing(model, gradients=seen, block_queries=8):
        loss = _loss(model, ids, options)
        loss.backward()
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-12)
    assert sorted(seen.sums) == sorted(expected)
    for layer, found in seen.sums.items():
        assert expected[layer][0] > 1e-3
        torch.testing.assert_close(found.sum(dim=0), expected[layer], rtol=1e-12, atol=1e-15)
        if kind != "right":  # there, queries that are padding see tokens: they are left out
            torch.testing.assert_close(seen.pairs[layer], pairs[layer], rtol=0, atol=0)
    for name, gradient in of_parameters.items():
        found = dict(model.named_parameters())[name].grad
        torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)


def _statistics(model, ids, options, needle=None):
    seen = HeadStatistics(4, TOKENS, needle)
    with torch.no_grad(), probing(model, weights=seen, block_queries=8):
        model(ids, use_cache=False, **options)
    return seen


@torch.no_grad()
@pytest.mark.parametrize("family", ["hypenet", "llama", "mistral_window", "gemma3", "qwen3_next"])
def test_distances_and_entropies_are_those_of_eager_weights(family):
    model = _double(family)
    ids, needle = random_ids(2, TOKENS) % 96, (30, 33)
    seen = _statistics(model, ids, {}, needle)
    model.set_attn_implementation("eager")
    attentions = model(ids, use_cache=False, output_attentions=True).attentions
    softmax = [weights.double() for weights in attentions if weights is not None]
    layers = (1, 2) if family == "hypenet" else PICOS[family].softmax
    back = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    for layer, alpha in zip(layers, softmax, strict=True):
        expected = (
            (alpha * back).sum(dim=(0, 2, 3)) / ids.numel(),
            -torch.xlogy(alpha, alpha).sum(dim=(0, 2, 3)) / ids.numel(),
            alpha[:, :, -1, slice(*needle)].sum(dim=(0, 2)),
        )
        # Others than HypeNet make their eager softmax in float32.
        torch.testing.assert_close(seen.means(layer), expected, rtol=1e-6, atol=1e-7)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["left", "right", "packed"])
@pytest.mark.parametrize("family", ["hypenet", "llama", "mistral_window", "gemma3"])
def test_padding_and_other_documents_count_in_no_distance(family, kind):
    model = _double(family)
    ids, options = _inputs(kind, model)
    seen = _statistics(model, ids, options)
    valid = options.get("attention_mask", torch.ones_like(ids))
    with full_logits(model) as logits:
        model(ids, use_cache=False, **options)
        weights = {layer: [s.softmax(dim=-1) for s in calls] for layer, calls in logits.items()}
    for layer, matrices in weights.items():
        distance = entropy = 0.0
        for alpha in matrices:
            tokens = alpha.shape[-1]
            if kind != "packed":
                alpha = alpha * valid[:, None, :, None]
            back = torch.arange(tokens)[:, None] - torch.arange(tokens)
            distance += (alpha * back).sum(dim=(0, 2, 3))
            entropy -= torch.xlogy(alpha, alpha).sum(dim=(0, 2, 3))
        found = seen.means(layer)[:2]
        expected = (distance / valid.sum(), entropy / valid.sum())
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("size", [7, TOKENS, 100])
@pytest.mark.parametrize("family", ["hypenet", "gemma3"])
def test_maps_are_the_largest_weights_of_each_tile(family, size):
    model = _double(family)
    ids = random_ids(1, TOKENS) % 96
    heads = [(1, 0), (2, 3)]
    pooled = PooledMaps(heads, TOKENS, size)
    with probing(model, weights=pooled, block_queries=8):
        model(ids, use_cache=False)
    model.set_attn_implementation("eager")
    attentions = model(ids, use_cache=False, output_attentions=True).attentions
    size = min(size, TOKENS)
    tile = torch.arange(TOKENS) * size // TOKENS
    for layer, head in heads:
        alpha = attentions[layer][0, head].float()
        expected = torch.stack(
            [torch.stack([alpha[tile == r][:, tile == c].max() for c in range(size)])
             for r in range(size)]
        )  # fmt: skip
        torch.testing.assert_close(pooled.maps[layer, head], expected, rtol=1e-5, atol=1e-7)
        assert pooled.maps[layer, head].triu(1).max() == 0 or size < TOKENS


@pytest.mark.parametrize("family", ["hypenet", "llama", "qwen3_next", "gemma3"])
def test_the_model_computes_what_it_did_and_is_left_as_it_was(family):
    model = tiny_model(family)
    ids = random_ids(1, 300) % 96
    before = model(ids, use_cache=False).logits
    implementation = model.config._attn_implementation
    hooks = [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()]
    seen = DistanceHistogram(4, 300)
    with probing(model, gradients=seen, weights=HeadStatistics(4, 300, None)):
        inside = model(ids, use_cache=False).logits
    torch.testing.assert_close(inside, before, rtol=0, atol=1e-5)
    assert not seen.sums  # no backward, no gradients
    assert model.config._attn_implementation == implementation
    assert hooks == [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()]
    assert torch.equal(model(ids, use_cache=False).logits, before)


def test_a_probe_that_fails_leaves_the_model_as_it_was():
    model = tiny_model("llama")

    def fail(block):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), probing(model, weights=fail):
        model(random_ids(1, 10) % 96)
    assert model.config._attn_implementation == "sdpa"
    with probing(model, weights=HeadStatistics(4, 10, None)):
        model(random_ids(1, 10) % 96)


class _LargestTensor(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple) else (out,):
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("family", ["hypenet", "llama", "mistral_sliding"])
def test_nothing_of_tokens_squared_is_made(family):
    tokens, block = 512, 16
    model = tiny_model(family)
    ids = random_ids(1, tokens) % 96
    with (
        _LargestTensor() as seen,
        probing(
            model,
            gradients=DistanceHistogram(4, tokens),
            weights=HeadStatistics(4, tokens, None),
            block_queries=block,
        ),
    ):
        model.base_model(ids, use_cache=False).last_hidden_state.sum().backward()
    # A mask of tokens squared is 262 kB, a matrix of floats 1 MB; a block of two heads 68 kB.
    assert seen.largest < tokens**2


def test_diagonals_are_added_up_by_distance():
    block = torch.tensor([[1.0, 2.0, 4.0, 0.0], [8.0, 16.0, 32.0, 64.0]])  # queries 2 and 3
    assert sums_by_distance(block).tolist() == [68.0, 34.0, 17.0, 8.0]
    assert sums_by_distance(block).dtype == torch.float64


SHARED_BLOCKS = {"zamba", "zamba2"}
BEYOND_SOFTMAX = {"gemma2", "gpt_oss"}  # capped logits, sinks
# Multimodal wrappers that transformers does not load as a causal LM, or with masks of their own.
WRAPPERS = {
    *("ernie4_5_vl_moe", "glm4v", "glm4v_moe", "llama4", "mllama", "nemotron_h_omni"),
    *("qwen2_5_omni", "qwen2_5_vl", "qwen2_vl", "qwen3_omni_moe", "qwen3_vl", "qwen3_vl_moe"),
    "smolvlm",
}


@pytest.mark.parametrize("family", sorted(BEYOND_SOFTMAX | WRAPPERS))
def test_families_that_cannot_be_measured_are_refused(family, tmp_path):
    build(family, tmp_path, seed=0)
    with pytest.raises(UserError):
        open_model(tmp_path, "pre")


@pytest.mark.parametrize("family", sorted(set(PICOS) - SHARED_BLOCKS - BEYOND_SOFTMAX - WRAPPERS))
def test_every_mapped_family_is_measured(family, tmp_path):
    build(family, tmp_path, seed=0)
    model, parent = open_model(tmp_path, "pre")
    assert model.softmax_layers == PICOS[family].softmax
    assert model.full_layers == tuple(sorted(set(PICOS[family].softmax) - {*PICOS[family].sliding}))
    assert model.num_heads == 4
    assert parent.role == "pre"


@pytest.mark.parametrize("family", ["zamba", "zamba2"])
def test_attention_that_several_layers_share_is_refused_by_name(family, tmp_path):
    build(family, tmp_path, seed=0)
    # transformers 5.16 saves shared parameters of zamba2 once, so its tensors are missed first.
    reason = r"Zamba2?Attention: its attention has no layer index|shared_transformer\S+ is missing"
    with pytest.raises(UserError, match=reason):
        open_model(tmp_path, "pre")


def test_attention_outside_of_the_interface_is_refused_by_name(monkeypatch):
    model = tiny_model("llama")
    attention = model.model.layers[2].self_attn
    monkeypatch.setattr(
        attention, "forward", lambda hidden_states, **_: (hidden_states, None), raising=True
    )
    layers = dict.fromkeys(range(4), LayerKind.FULL)
    message = (
        r"folder: the attention of llama does not go through transformers' attention interface"
    )
    with pytest.raises(UserError, match=message) as raised:
        measured(model, "folder", layers)
    assert "observed in layers [0, 1, 3]" in str(raised.value)


def test_a_model_without_softmax_layers_is_refused(make_model):
    with pytest.raises(UserError, match="folder: hypenet has no softmax layer"):
        measured(make_model("linear_only"), "folder", {})


@pytest.mark.parametrize("option", ["softcap", "s_aux"])
def test_attention_that_is_more_than_a_softmax_is_refused(option):
    model = tiny_model("llama")
    options = {option: torch.ones(4)}
    with (
        pytest.raises(UserError, match=f"LlamaAttention: its attention has {option}"),
        probing(model, weights=HeadStatistics(4, 5, None)),
    ):
        model(random_ids(1, 5) % 96, **options)
