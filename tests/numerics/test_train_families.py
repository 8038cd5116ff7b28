"""Every family that can be trained: our loss and gradients against its own forward pass."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from amnesia_bench.errors import UserError
from amnesia_bench.modeling import HypeNetConfig, HypeNetForCausalLM
from amnesia_bench.training import heads
from amnesia_bench.training.heads import TRAINABLE, head_of
from amnesia_bench.training.loss_check import check_loss
from amnesia_bench.training.models import load_for_training
from amnesia_bench.training.objectives import NextToken, isolate_without_mask
from amnesia_bench.weights.checkpoint import open_checkpoint
from tests.numerics.test_train_objectives import first_batch, random_rows
from tests.support.jet import JET_PICO
from tests.support.pico import GATED_DELTA, MAMBA2, SMALL
from tests.support.training_runs import TINY, TOKENS, VOCAB, Row, training_run

BASE = {**SMALL, "vocab_size": VOCAB}
WIDE = {**BASE, "head_dim": 8}
WINDOWS = {"sliding_window": 4}
MIXED = {"layer_types": ["mamba", "attention"] * 2}
DENSE = {"num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 16}
CONFIGS = {
    "llama": {**BASE, "attention_bias": True},
    "mistral": {**WIDE, **WINDOWS},
    "qwen2": {**BASE, **WINDOWS, "use_sliding_window": True, "max_window_layers": 2},
    "qwen3": WIDE,
    "phi": BASE,
    "phi3": {**BASE, "sliding_window": None},
    "gemma": WIDE,
    "olmo": {**BASE, "clip_qkv": 1.0},
    "olmo2": BASE,
    "olmo3": {**BASE, **WINDOWS},
    "smollm3": BASE,
    "exaone4": {**BASE, **WINDOWS},
    "glm": WIDE,
    "glm4": WIDE,
    "seed_oss": {**WIDE, "attention_dropout": 0.0, "residual_dropout": 0.0},
    "ernie4_5": WIDE,
    "hunyuan_v1_dense": WIDE,
    "starcoder2": {**BASE, **WINDOWS},
    "helium": WIDE,
    "arcee": BASE,
    "ministral": {**WIDE, **WINDOWS},
    "ministral3": WIDE,
    "gemma3_text": {**WIDE, **WINDOWS, "num_hidden_layers": 6, "final_logit_softcapping": 2.0},
    "nanochat": {**BASE, "final_logit_softcapping": 1.5},
    "cohere": {**BASE, "logit_scale": 0.0625},
    "cohere2": {**WIDE, **WINDOWS, "logit_scale": 0.25},
    "granite": {**BASE, "logits_scaling": 8.0, "attention_multiplier": 0.2},
    "hyperclovax": {**BASE, "logits_scaling": 0.125},
    "gemma2": {**WIDE, **WINDOWS, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.0},
    "qwen3_5_text": {**BASE, **GATED_DELTA, "head_dim": 16},
    "bamba": {**BASE, **MAMBA2, "attn_layer_indices": [1, 3]},
    "lfm2": {**BASE, "full_attn_idxs": [1, 3]},
    "falcon_h1": {
        **BASE,
        **MAMBA2,
        "num_hidden_layers": 2,
        "mamba_d_ssm": 64,
        "lm_head_multiplier": 0.0390625,
    },
    "granitemoehybrid": {
        **BASE,
        **MAMBA2,
        **MIXED,
        **DENSE,
        "attention_multiplier": 0.2,
        "logits_scaling": 8.0,
    },
    "jet_nemotron": {**JET_PICO, "vocab_size": VOCAB, "max_position_embeddings": 4096},
    "recurrent_gemma": {
        **{key: value for key, value in BASE.items() if key != "max_position_embeddings"},
        "num_hidden_layers": 3,
        "lru_width": 32,
        "logits_soft_cap": 2.0,
    },
}


def build(kind, **changes):
    torch.manual_seed(0)
    if kind == "hypenet":
        model = HypeNetForCausalLM(HypeNetConfig(**(TINY | changes)))
    else:
        values = CONFIGS[kind] | changes
        values.pop("model_type", None)
        config = AutoConfig.for_model(kind, **values)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def labelled_documents(rows):
    """Yield the tokens and labels, each [1, T], of every document with a trained token."""
    for row in rows:
        cuts = np.cumsum([0, *row.document_lengths])
        for start, stop in itertools.pairwise(cuts):
            tokens = torch.from_numpy(row.tokens[start:stop].astype(np.int64))[None]
            trained = torch.from_numpy(row.loss_mask[start:stop].copy())[None]
            trained[:, 0] = False
            if trained.any():
                yield tokens, torch.where(trained, tokens, -100)


def own_loss(model, rows):
    """The loss by the model's own forward pass, document by document, summed over tokens."""
    return sum(
        model(tokens, labels=labels).loss * (labels >= 0).sum()
        for tokens, labels in labelled_documents(rows)
    )


def loss_and_gradients(model, loss):
    model.zero_grad()
    loss.backward()
    found = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
             for n, p in model.named_parameters()}  # fmt: skip
    return loss.item(), found


def test_every_family_is_here():
    assert {"hypenet", *CONFIGS} == set(TRAINABLE)


@pytest.mark.parametrize("kind", ["hypenet", *CONFIGS])
def test_loss_and_gradients_are_the_models_own(kind):
    model = build(kind)
    if TRAINABLE[kind].documents == "alone":
        mask = np.arange(TOKENS) < 23
        rows = [Row(r.tokens, r.loss_mask & mask, (23, TOKENS - 23)) for r in random_rows(2)]
    else:
        rows = random_rows(2)
    wanted, gradients = loss_and_gradients(model, own_loss(model, rows))
    check_loss(model, Path("INIT"))
    isolate_without_mask(model)
    run = training_run({"global_batch": 2, "micro_batch": 2})
    (batch,) = first_batch(run, rows)
    assert (batch.packed is None) == (TRAINABLE[kind].documents == "alone")
    objective = NextToken(run, model)
    assert objective.count(batch) == sum(len(first_batch(run, [r, r])[0].targets) for r in rows) / 2
    found, by_us = loss_and_gradients(model, objective(batch)[0])
    assert found == pytest.approx(wanted, rel=1e-5)
    for name, gradient in gradients.items():
        # Of the largest entry: sums of many terms in another order.
        atol = 1e-5 * max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(by_us[name], gradient, rtol=1e-5, atol=atol, msg=name)


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_it_saves_is_what_it_trains(kind, tmp_path):
    build(kind).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    model = load_for_training(checkpoint, "fp32", None, first=True)
    assert {name for name, _ in model.named_parameters()} <= checkpoint.tensors.keys()
    assert len(model.base_model.layers) == CONFIGS[kind].get("num_hidden_layers")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "row", "said"),
    [
        ("granite", {"over": None}, r"its own logits are not 1 \(W h\)"),
        ("falcon_h1", {"times": None}, r"its own logits are not 1 \(W h\)"),
        ("gemma3_text", {"cap": None}, r"its own logits are not 1 \(W h\)"),
        ("cohere", {"times": None, "over": "logit_scale"}, r"not 16 \(W h\)"),
    ],
)
def test_a_head_that_we_have_wrong_is_refused_at_the_start(kind, row, said, dtype, monkeypatch):
    wrong = {**TRAINABLE, kind: replace(TRAINABLE[kind], **row)}
    monkeypatch.setattr(heads, "TRAINABLE", wrong)
    with pytest.raises(UserError, match=f"INIT: the trained loss would not be.*{said}"):
        check_loss(build(kind).to(dtype), Path("INIT"))


class Meddling:
    """A Qwen3 whose own forward pass does something besides."""

    def __init__(self, what):
        self.model, self.honest = build("qwen3"), None
        self.honest, self.model.forward = self.model.forward, getattr(self, what)

    def loss(self, **inputs):
        output = self.honest(**inputs)
        output.loss = output.loss + 0.1
        return output

    def inputs(self, input_ids, **inputs):
        return self.honest(input_ids=input_ids.flip(1), **inputs)

    def twice(self, **inputs):
        self.model.model(inputs["input_ids"])
        return self.honest(**inputs)

    def fails(self, **_):
        raise KeyError("what is this")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("loss", "its own loss of a few tokens is .*, and the mean cross-entropy"),
        ("inputs", "does more than its layers and its head"),
        ("twice", "does more than its layers and its head"),
        ("fails", "fails without its layers"),
    ],
)
def test_a_model_that_computes_its_loss_otherwise_is_refused(what, said):
    with pytest.raises(UserError, match=said):
        check_loss(Meddling(what).model, Path("INIT"))


def test_a_loss_of_the_router_is_refused_with_the_way_out():
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    model = build("granitemoehybrid", **experts, output_router_logits=True)
    with pytest.raises(
        UserError, match=r"enables the router loss.*\n.*output_router_logits.*false"
    ):
        check_loss(model, Path("INIT"))


def test_the_check_leaves_the_model_and_the_random_numbers_as_they_were():
    model, before = build("hypenet"), torch.get_rng_state()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        logits = model(ids).logits
        check_loss(model, Path("INIT"))
        assert torch.equal(model(ids).logits, logits)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_number_above_0_is_named(value):
    model = build("granite")
    model.config.logits_scaling = value
    with pytest.raises(UserError, match=r"config.json: logits_scaling is .*, not a number above 0"):
        head_of(model)
