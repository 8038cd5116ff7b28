"""Tiny random causal LMs, a tokenizer for them, and prompts with needles, for tests of engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from amnesia_bench.inference.protocol import PromptRequest
from amnesia_bench.modeling import HypeNetConfig, HypeNetForCausalLM
from amnesia_bench.records.evaluation import SampleKey, Sampling
from tests.support.jet import JET_SHAPES, jet_model
from tests.support.pico import PICOS

VOCAB = 96
EOS = VOCAB - 1
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 16384,
    "initializer_range": 0.3,
}


def tiny_model(name: str, seed: int = 0) -> Any:
    """Build a model: "hypenet", "jet_nemotron", "mistral_sliding" (window 100), or a `pico`."""
    torch.manual_seed(seed)
    if name == "jet_nemotron":
        model: Any = jet_model(JET_SHAPES["sliding_first"] | {"vocab_size": VOCAB}, seed)
    elif name == "hypenet":
        config = HypeNetConfig(
            **SHAPE,
            mixer_types=["lightning-attn", "attn", "attn", "lightning-attn"],
            attn_use_rope=False,
            attn_logit_scale_a=50.0,
            lightning_nkv=4,
            lightning_use_qk_norm=True,
            lightning_use_output_norm=True,
        )
        model = HypeNetForCausalLM(config)
    else:
        family = name.removesuffix("_sliding")
        pico = PICOS[family]
        changes = {key: SHAPE[key] for key in ("vocab_size", "max_position_embeddings")}
        if name == "qwen2":
            changes["use_sliding_window"] = False
        if name == "mistral_sliding":
            changes["sliding_window"] = 100
        config = AutoConfig.for_model(pico.model_type, **{**pico.config, **changes})
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.generation_config.eos_token_id = EOS
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of the words t0 ... t95; the last one is the end token."""
    words = {f"t{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=f"t{EOS}")


def needle_prompts(
    count: int, num_tokens: int, depths: int, seed: int = 0
) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    """Return prompts of one haystack, each with a needle of its own at one of `depths` places."""
    rng = np.random.default_rng(seed)
    haystack = rng.integers(0, EOS, num_tokens - 20, dtype=np.int32)
    places = rng.permutation(np.arange(count) % depths) * len(haystack) // max(1, depths - 1)
    return [
        np.concatenate(
            [haystack[:place], rng.integers(0, EOS, 8), haystack[place:], rng.integers(0, EOS, 12)]
        ).astype(np.int32)
        for place in places.tolist()
    ]


def requests_of(
    prompts: list[np.ndarray[Any, np.dtype[np.int32]]], new: int = 6, **sampling: Any
) -> list[PromptRequest]:
    """Make one request per prompt; greedy unless told otherwise, with the seed of its place."""
    values: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "top_k": None, "stop": ()}
    how = Sampling(max_new_tokens=new, **(values | sampling))
    return [
        PromptRequest(
            key=SampleKey(task="needles", doc=i, repeat=0),
            tokens=tokens,
            sampling=how,
            seed=None if how.greedy else i,
        )
        for i, tokens in enumerate(prompts)
    ]
