"""Tiny Qwen2-shaped checkpoint folders whose tokens are bytes, with a BOS, for tests of lm-eval."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

LAYERS = 3
_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if not loop.last or add_generation_prompt %}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the 256 bytes, <s> (put before every text if `bos`) and <end>."""
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<s>", "<end>"]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 256)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<end>",
        chat_template=_TEMPLATE,
    )


def save_checkpoint(folder: Path, seed: int = 0) -> Path:
    """Write a random model with three softmax layers and its tokenizer."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        bos_token_id=256,
        eos_token_id=257,
        initializer_range=0.3,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def write_haystack(path: Path) -> list[str]:
    """Write made-up essays; return their texts as lm-eval's data set has them."""
    animals = ("fox", "owl", "hare", "pike", "wren", "toad", "lynx")
    places = ("in the wood", "by the lake", "on the hill", "under a stone", "far away")
    sentences = [
        f"The {animals[i % 7]} number {i} was seen {places[i % 5]} that day." for i in range(700)
    ]
    text = " ".join(sentences)
    path.write_text(json.dumps({"text": text}))
    return [text]
