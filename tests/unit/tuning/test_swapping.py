"""A model in memory turns into any mix, and answers as the checkpoint that `restore` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from amnesia_bench.config.load import load_variant
from amnesia_bench.config.schema import Select
from amnesia_bench.errors import UserError
from amnesia_bench.inference.protocol import EngineOptions
from amnesia_bench.inference.transformers_engine import TransformersEngine
from amnesia_bench.requests.checkpoints import RestoreRequest
from amnesia_bench.surgery.restoration import RestoreJob, prepare_restore, restore
from amnesia_bench.tuning.setup import plan_rest
from amnesia_bench.tuning.space import POST, TUNED_ROLES, Mix
from amnesia_bench.tuning.swapping import MixEngine, SwappedModel
from tests.support.tiny_models import needle_prompts, requests_of, tiny_model, tiny_tokenizer

OPTIONS = EngineOptions(prefill_chunk_tokens=32, max_rows=1, device="cpu")
MODELS = {"hypenet": torch.float32, "gemma3": torch.float32, "qwen2": torch.bfloat16}


def save_pair(name: str, folder: Path, dtype: torch.dtype) -> tuple[Path, Path]:
    model = tiny_model(name).to(dtype)
    tiny_tokenizer().save_pretrained(folder / "pre")
    tiny_tokenizer().save_pretrained(folder / "post")
    model.save_pretrained(folder / "pre")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder / "post")
    return folder / "pre", folder / "post"


def planned(pre: Path, post: Path) -> RestoreJob:
    qk = load_variant("qk")
    job = prepare_restore(RestoreRequest(pre=pre, post=post, variant=qk))
    layers = {plan.layer for plan in job.plans}
    own = {tensor.role for tensor in job.pair.attention.tensors if tensor.layer in layers}
    roles = tuple(role for role in TUNED_ROLES if role in own)
    variant = qk.model_copy(update={"select": Select(roles=roles)})
    return prepare_restore(RestoreRequest(pre=pre, post=post, variant=variant))


def texts(engine: Any, requests: Any) -> dict[Any, tuple[int, ...]]:
    return {generation.key: generation.tokens for generation in engine.generate(requests)}


@pytest.mark.parametrize("name", MODELS)
def test_a_mix_in_memory_answers_as_its_checkpoint(name: str, tmp_path: Path) -> None:
    pre, post = save_pair(name, tmp_path, MODELS[name])
    job = planned(pre, post)
    engine = TransformersEngine.load(post, OPTIONS)
    model = SwappedModel(engine, job.pair, job.plans, plan_rest(job))
    assert model.can_change_rest
    requests = requests_of(needle_prompts(3, 90, depths=2), new=6)
    of_post = texts(MixEngine(model, engine, POST), requests)
    logits_of_post = engine.first_logits(requests[0].tokens)
    every = dict.fromkeys(model.places, 1.0)
    last = max(layer for layer, _ in model.places)
    mixes = {
        "everything": Mix.of(every),
        "shares": Mix.of({place: (i % 4 + 1) / 4 for i, place in enumerate(model.places)}),
        "last": Mix.of({place: 0.5 for place in model.places if place[0] == last}),
        "rest": Mix.of({model.places[0]: 1.0}, rest=0.25),
    }
    for label, mix in mixes.items():
        in_memory = texts(MixEngine(model, engine, mix), requests)
        out = tmp_path / label
        variant = mix.variant("tuned", model.places)
        restore(RestoreRequest(pre=pre, post=post, variant=variant), out)
        written = TransformersEngine.load(out, OPTIONS)
        assert in_memory == texts(written, requests)
        logits = engine.first_logits(requests[0].tokens)
        # If all weights are new, they are at other addresses, where products may round otherwise.
        tolerance = 1e-5 if mix.rest else 0.0
        again = written.first_logits(requests[0].tokens)
        torch.testing.assert_close(logits, again, rtol=tolerance, atol=tolerance, msg=label)
        assert not torch.equal(logits, logits_of_post), "the change must matter"
        stored = dict(written.module.named_parameters())
        for key, parameter in engine.module.named_parameters():
            assert torch.equal(parameter, stored[key]), (label, key)
    assert texts(MixEngine(model, engine, POST), requests) == of_post
    memo = model.memo
    assert memo is not None
    assert memo.replayed > 0
    # The same share everywhere is the average of the checkpoints (WiSE-FT).
    average = Mix.of(dict.fromkeys(model.places, 0.5), rest=0.5)
    in_memory = texts(MixEngine(model, engine, average), requests)
    restore(RestoreRequest(pre=pre, post=post, variant=load_variant("wise_ft")), tmp_path / "wise")
    assert in_memory == texts(TransformersEngine.load(tmp_path / "wise", OPTIONS), requests)
    # All of pre's roles that are tuned: the copy rule writes the same bytes.
    copied = load_variant("qk").model_copy(
        update={"select": Select(roles=tuple(dict.fromkeys(role for _, role in model.places)))}
    )
    restore(RestoreRequest(pre=pre, post=post, variant=copied), tmp_path / "copied")
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("copied", "everything")]
    assert weights[0] == weights[1]


def test_a_model_that_stores_other_weights_than_its_file_is_refused(tmp_path: Path) -> None:
    pre, post = save_pair("qwen2", tmp_path, torch.float32)
    job = planned(pre, post)
    engine = TransformersEngine.load(pre, OPTIONS)
    with pytest.raises(UserError, match="in another form than the file"):
        SwappedModel(engine, job.pair, job.plans)


def test_without_matching_weights_only_the_softmax_layers_can_be_changed(tmp_path: Path) -> None:
    pre, post = save_pair("qwen2", tmp_path, torch.float32)
    model: Any = TransformersEngine.load(post, OPTIONS).module
    model.resize_token_embeddings(model.config.vocab_size + 8)
    model.save_pretrained(post)
    job = planned(pre, post)
    rest = plan_rest(job)
    assert rest == ()
    swapped = SwappedModel(TransformersEngine.load(post, OPTIONS), job.pair, job.plans, rest)
    assert not swapped.can_change_rest
