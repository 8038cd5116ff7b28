"""The loss of each stage against its formula in float64, and who sees whom."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import AutoConfig, AutoModelForCausalLM

from amnesia_bench.modeling import HypeNetConfig, HypeNetForCausalLM
from amnesia_bench.training.batches import Batches, FileOrder
from amnesia_bench.training.objectives import (
    Align,
    Distill,
    NextToken,
    Teacher,
    hidden_states,
    isolate_without_mask,
)
from tests.numerics.test_model_formula import lightning_mixer
from tests.support.training_runs import TINY, TOKENS, VOCAB, Row, training_run


class Rows:
    """Prepared data in memory."""

    tokenizer_sha256, sequence_tokens, isolate_documents = "", TOKENS, True

    def __init__(self, rows):
        self.rows = rows
        self.num_sequences = len(rows)

    def sequence(self, i):
        return self.rows[i]


def random_rows(count=2, lengths=(9, 14, 9), seed=0):
    rng = np.random.default_rng(seed)
    return [
        Row(
            rng.integers(3, VOCAB, TOKENS, dtype=np.int32),
            rng.random(TOKENS) < 0.4,
            lengths,
        )
        for _ in range(count)
    ]


def first_batch(run, rows):
    batches = Batches(run, {"sft": Rows(rows)}, FileOrder([len(rows)]), 0, 1)
    return batches.step(1).micro_batches


def hypenet(**changes):
    torch.manual_seed(0)
    model = HypeNetForCausalLM(HypeNetConfig(**(TINY | {"initializer_range": 0.3} | changes)))
    return model.double()


def qwen3():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(1)
    shared = {key: value for key, value in TINY.items() if key in Qwen3Config().to_dict()}
    rope = {"rope_type": "default", "rope_theta": 1000000.0}
    config = Qwen3Config(**(shared | {"rope_parameters": rope, "initializer_range": 0.3}))
    return Qwen3ForCausalLM(config).double().eval()


DISTILL = {"objective": "distill", "teacher": "t", "isolate_documents": False}
ALIGN = DISTILL | {"objective": "align"}


@pytest.mark.parametrize("isolate", [True, False])
def test_next_token_loss_is_cross_entropy_over_the_trained_tokens(isolate):
    run = training_run({"global_batch": 2, "micro_batch": 2, "isolate_documents": isolate})
    rows, model = random_rows(), hypenet()
    (batch,) = first_batch(run, rows)
    objective = NextToken(run, model)
    loss, _ = objective(batch)
    expected, count = 0.0, 0
    for row in rows:
        cuts = np.cumsum([0, *row.document_lengths]) if isolate else np.array([0, TOKENS])
        for start, stop in itertools.pairwise(cuts):
            ids = torch.from_numpy(row.tokens[start:stop].astype(np.int64))
            scores = log_softmax(model(ids[None]).logits[0], dim=-1)
            for t in range(1, stop - start):
                if row.loss_mask[start + t]:
                    expected -= scores[t - 1, ids[t]].item()
                    count += 1
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert objective.count(batch) == count


def test_distillation_loss_is_the_kl_at_every_position():
    run = training_run(DISTILL | {"global_batch": 2, "micro_batch": 2})
    rows, model, teacher = random_rows(), hypenet(), qwen3()
    (batch,) = first_batch(run, rows)
    objective = Distill(run, model, Teacher(teacher))
    loss, _ = objective(batch)
    ids = torch.from_numpy(np.stack([row.tokens for row in rows]).astype(np.int64))
    theirs = log_softmax(teacher(ids).logits, dim=-1)
    ours = log_softmax(model(ids).logits, dim=-1)
    expected = (theirs.exp() * (theirs - ours)).sum().item()
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert objective.count(batch) == 2 * TOKENS
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any("teacher" in name for name, _ in objective.named_parameters())


@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (0, 3)])
def test_alignment_loss_is_the_mean_squared_error_of_each_layers_mixer(layers):
    run = training_run(ALIGN | {"global_batch": 2, "micro_batch": 2})
    rows, teacher = random_rows(), qwen3()
    student = hypenet(mixer_types=["lightning-attn"] * 4)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    (batch,) = first_batch(run, rows)
    objective = Align(student, Teacher(teacher), layers)
    loss, by_layer = objective(batch)
    ids = torch.from_numpy(np.stack([row.tokens for row in rows]).astype(np.int64))
    seen = {}
    for i, layer in enumerate(teacher.model.layers):
        layer.self_attn.register_forward_hook(
            lambda _, args, kwargs, output, i=i: seen.update({i: (kwargs, output[0])}),
            with_kwargs=True,
        )
    teacher(ids)
    weights, errors = student.state_dict(), []
    for i in layers:
        x, wanted = seen[i][0]["hidden_states"], seen[i][1]
        mixed = torch.cat(
            [
                lightning_mixer(student.config, weights, f"model.layers.{i}.self_attn", row[None])
                for row in x
            ]
        )
        errors.append((mixed - wanted).square().mean().item())
    assert by_layer.tolist() == pytest.approx([e * 2 * TOKENS for e in errors], rel=1e-6)
    assert loss.item() / objective.count(batch) == pytest.approx(np.mean(errors), rel=1e-6)
    loss.backward()
    assert {name.split(".")[1] for name, p in objective.named_parameters() if p.grad is not None} \
        == {str(i) for i in layers}  # fmt: skip
    assert all(torch.equal(before[name], x) for name, x in teacher.state_dict().items())


def losses_by_document(model, rows):
    """Per document of the first row: its loss, and the gradient of each token's embedding."""
    run = training_run({"global_batch": 1, "micro_batch": 1})
    objective = NextToken(run, model)
    (batch,) = first_batch(run, rows)
    embedded = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda _, args, output: (embedded.append(output), output.retain_grad())[0]
    )
    cuts = np.cumsum([0, *rows[0].document_lengths])
    inside = (batch.targets_at >= cuts[1]) & (batch.targets_at < cuts[2])
    chosen = type(batch)(
        input_ids=batch.input_ids,
        packed=batch.packed,
        targets_at=batch.targets_at[inside],
        targets=batch.targets[inside],
    )
    loss, _ = objective(chosen)
    loss.backward()
    hook.remove()
    return loss.item(), embedded[0].grad[0]


@pytest.mark.parametrize(
    "mixers", [["lightning-attn"] * 4, ["attn"] * 4, TINY["mixer_types"], "qwen3"]
)
def test_a_document_neither_sees_nor_teaches_its_neighbours(mixers):
    model = qwen3().train() if mixers == "qwen3" else hypenet(mixer_types=mixers)
    rows = random_rows(1)
    loss, gradient = losses_by_document(model, rows)
    other = random_rows(1, seed=5)[0]
    tokens = rows[0].tokens.copy()
    tokens[:9], tokens[23:] = other.tokens[:9], other.tokens[23:]
    changed = [Row(tokens, rows[0].loss_mask, rows[0].document_lengths)]
    loss_again, gradient_again = losses_by_document(model, changed)
    assert loss_again == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(gradient_again[9:23], gradient[9:23], rtol=1e-10, atol=1e-14)
    assert gradient[9:23].abs().max() > 1e-3
    assert not gradient[:9].any()
    assert not gradient[23:].any()


def test_padding_behind_the_documents_is_one_of_its_own():
    run = training_run({"global_batch": 1})
    row = random_rows(1, lengths=(9, 14))[0]
    mask = np.arange(TOKENS) < 23
    (batch,) = first_batch(run, [Row(row.tokens, mask, row.document_lengths)])
    assert batch.packed.bounds == (0, 9, 23, TOKENS)
    assert batch.targets_at.max() < 22


def test_rows_of_one_document_and_padding_are_rows_and_give_the_same_loss():
    run = training_run({"global_batch": 2, "micro_batch": 2})
    rows, model = random_rows(2, lengths=(23,)), hypenet()
    rows = [Row(r.tokens, r.loss_mask & (np.arange(TOKENS) < 23), (23, 9)) for r in rows]
    (batch,) = first_batch(run, rows)
    assert batch.packed is None
    assert batch.input_ids.shape == (2, TOKENS)
    singles = [first_batch(training_run({"global_batch": 1}), [row])[0] for row in rows]
    expected = sum(NextToken(run, model)(single)[0].item() for single in singles)
    assert NextToken(run, model)(batch)[0].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("window", [None, 4, 12])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_softmax_models_isolate_documents_without_a_mask(kind, window, monkeypatch):
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "max_position_embeddings")  # fmt: skip
    torch.manual_seed(0)
    sizes = {key: TINY[key] for key in keys}
    windows = {"sliding_window": window, "use_sliding_window": True, "max_window_layers": 1}
    config = AutoConfig.for_model(kind, **sizes, **windows)
    model = AutoModelForCausalLM.from_config(config).double()
    (batch,) = first_batch(training_run({"global_batch": 1}), random_rows(1))
    alone = [
        hidden_states(model, replace(batch, packed=None, input_ids=batch.input_ids[:, start:stop]))
        for start, stop in batch.packed.documents
    ]
    masked = hidden_states(model, batch)
    isolate_without_mask(model)
    monkeypatch.setattr("transformers.masking_utils.sdpa_mask", None)
    for found in (masked, hidden_states(model, batch)):
        torch.testing.assert_close(found, torch.cat(alone, dim=1), rtol=0, atol=1e-12)


def test_the_first_token_of_a_document_is_predicted_by_none():
    run = training_run({"global_batch": 1})
    row = random_rows(1)[0]
    everything = Row(row.tokens, np.ones(TOKENS, bool), row.document_lengths)
    (batch,) = first_batch(run, [everything])
    assert set(range(TOKENS)) - set((batch.targets_at + 1).tolist()) == {0, 9, 23}
    assert torch.equal(batch.targets, batch.input_ids[0][batch.targets_at + 1])
