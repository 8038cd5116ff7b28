"""Divergence, norms of changes and drift of heads, against direct computation."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from amnesia_bench.analysis.divergence import WeightChanges, divergence_on, weight_changes
from amnesia_bench.analysis.gradients import _summed_loss
from amnesia_bench.analysis.models import measured
from amnesia_bench.analysis.texts import Text, Texts
from amnesia_bench.errors import UserError
from amnesia_bench.merging.values import mean_loss
from amnesia_bench.records.artifacts import Parent
from amnesia_bench.records.roles import LayerKind, Role
from amnesia_bench.surgery.head_drift import query_head_drift
from amnesia_bench.weights.attention_map import attention_map
from amnesia_bench.weights.checkpoint import open_checkpoint
from tests.support.pico import PICOS, build
from tests.support.tiny_models import tiny_model

PARENTS = (Parent(role="pre", location="a", identity="b"),) * 3


def _texts():
    rng = np.random.default_rng(0)
    taken = []
    for length in (20, 90, 150):  # more than one chunk of positions
        trained = rng.random(length) < 0.7
        trained[0] = False
        taken.append(Text(rng.integers(0, 95, length).astype(np.int32), trained))
    return Texts("made up", None, tuple(taken), 0, 0, "made up")


def _pair(family):
    layers = (1, 2) if family == "hypenet" else PICOS[family].softmax
    kinds = dict.fromkeys(layers, LayerKind.FULL)
    return tuple(measured(tiny_model(family, seed).double(), family, kinds) for seed in (0, 1))


# The logits of RecurrentGemma are capped behind the head.
@pytest.mark.parametrize("family", ["hypenet", "recurrent_gemma"])
def test_the_divergence_is_that_of_the_predictions_of_trained_tokens(family):
    models, texts = _pair(family), _texts()
    record = divergence_on(
        models, texts, WeightChanges(all=0.5, routing=0.25), PARENTS, np.random.default_rng(0)
    )
    total, count = 0.0, 0
    for text in texts.taken:
        ids = torch.from_numpy(text.tokens.astype(np.int64))[None]
        with torch.no_grad():
            pre, post = (
                model.module(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
                for model in models
            )
        kl = (pre.exp() * (pre - post)).sum(-1)
        total += float(kl[torch.from_numpy(text.trained[1:])].sum())
        count += int(text.trained.sum())
    assert record.divergence.value == pytest.approx(total / count, rel=1e-10)
    assert (record.n, record.tokens) == (3, count)
    assert record.divergence.interval.low < record.divergence.value
    (same, _) = models
    none = divergence_on(
        (same, same), texts, WeightChanges(all=0, routing=0), PARENTS, np.random.default_rng(0)
    )
    assert none.divergence.value == pytest.approx(0, abs=1e-12)


def test_tokens_that_the_fine_tune_added_are_left_out():
    (pre, _), texts = _pair("llama"), _texts()
    larger = tiny_model("llama", 0).double()
    larger.resize_token_embeddings(larger.config.vocab_size + 5)
    with torch.no_grad():  # the added tokens would take half of the probability
        larger.get_output_embeddings().weight[-5:] *= 50
    post = measured(larger, "larger", dict.fromkeys(PICOS["llama"].softmax, LayerKind.FULL))
    record = divergence_on(
        (pre, post), texts, WeightChanges(all=0, routing=0), PARENTS, np.random.default_rng(0)
    )
    assert record.divergence.value == pytest.approx(0, abs=1e-12)


def test_mean_losses_over_a_large_vocabulary_are_those_in_float64():
    logits = 3 * torch.randn(9, 262_144, generator=torch.Generator().manual_seed(0))
    module = torch.nn.Module()
    module.get_input_embeddings = lambda: torch.nn.Embedding(1, 1)
    module.forward = lambda **_: SimpleNamespace(logits=logits[None])
    tokens = np.arange(9, dtype=np.int32)
    loss = mean_loss(module, [Text(tokens, tokens > 0)])
    wanted = cross_entropy(logits[:-1].double(), torch.arange(1, 9)).item()
    assert loss == pytest.approx(wanted, abs=3e-6)


def test_the_loss_of_capped_logits_is_taken_in_float32():
    logits = 4 * torch.randn(64, 5000, generator=torch.Generator().manual_seed(0))
    gradients = []
    for dtype in (torch.bfloat16, torch.float64):
        given = logits.bfloat16().to(dtype).requires_grad_()
        _summed_loss(given, torch.arange(64)).backward()
        gradients.append(given.grad.double())
    relative = (gradients[0] - gradients[1]).abs() / gradients[1].abs()
    assert relative.max() < 0.005  # half a step of bfloat16


# GQA with biases, a fused qkv_proj, queries interleaved with gates, all interleaved by head.
@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3_next", "gpt_neox"])
def test_the_drift_of_a_head_is_that_of_its_rows_and_of_its_groups_keys(family, tmp_path):
    for folder in ("pre", "post"):
        build(family, tmp_path / folder, seed=0)
    checkpoint = open_checkpoint(tmp_path / "pre")
    attention = attention_map(checkpoint.config, checkpoint.shapes)
    layer = attention.layers(LayerKind.FULL)[-1]
    of_layer = {
        role: [t for t in attention.tensors if (t.layer, t.role) == (layer, role)]
        for role in (Role.Q, Role.K)
    }
    query, key = of_layer[Role.Q][0], of_layer[Role.K][0]
    if family == "llama":
        assert [t.name.rpartition(".")[2] for t in of_layer[Role.Q]] == ["weight", "bias"]
    file = tmp_path / "post" / "model.safetensors"
    weights = load_file(file)
    old = {name: tensor.clone() for name, tensor in weights.items()}
    weights[query.name][list(query.rows.rows(1))] *= 1.5  # query head 1
    weights[key.name][list(key.rows.rows(key.rows.num_heads - 1))] *= 3  # the last key head
    save_file(weights, file, {"format": "pt"})
    drift = query_head_drift(tmp_path / "pre", tmp_path / "post")
    heads = attention.num_query_heads
    assert set(drift) == {(i, h) for i in attention.layers(LayerKind.FULL) for h in range(heads)}
    shared = heads // key.rows.num_heads

    def square(tensor, head):
        return old[tensor.name][list(tensor.rows.rows(head))].double().norm() ** 2

    for head in range(heads):
        group = head // shared
        norm = sum(square(t, head) for t in of_layer[Role.Q])
        norm += sum(square(t, group) for t in of_layer[Role.K])
        moved = 0.25 * square(query, head) * (head == 1)
        moved += 4 * square(key, group) * (group == key.rows.num_heads - 1)
        assert drift[layer, head] == pytest.approx(float((moved / norm) ** 0.5), rel=1e-5)
        others = [drift[i, head] for i in attention.layers(LayerKind.FULL) if i != layer]
        assert others == [0.0] * len(others)


def test_the_changes_of_weights_are_relative_norms_and_no_change_is_refused(tmp_path):
    for folder in ("pre", "post"):
        build("llama", tmp_path / folder, seed=0)
    with pytest.raises(UserError, match="no weights differ"):
        weight_changes(tmp_path / "pre", tmp_path / "post")
    file = tmp_path / "post" / "model.safetensors"
    weights = load_file(file)
    names = [name for name in weights if "q_proj" in name or "down_proj" in name]
    old = {name: weights[name].double().norm() ** 2 for name in names}
    for name in names:
        weights[name] *= 1.5 if "q_proj" in name else 1.1
    save_file(weights, file, {"format": "pt"})
    moved = weight_changes(tmp_path / "pre", tmp_path / "post")
    assert moved.routing == pytest.approx(0.5, rel=1e-5)
    change = sum((0.25 if "q_proj" in name else 0.01) * norm for name, norm in old.items())
    assert moved.all == pytest.approx(float((change / sum(old.values())) ** 0.5), rel=1e-5)
