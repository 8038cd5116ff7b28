"""Tiny hybrid models that vLLM runs on a CPU, and its answers compared with transformers'."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from amnesia_bench.modeling import (
    HypeNetConfig,
    HypeNetForCausalLM,
    JetNemotronConfig,
    JetNemotronForCausalLM,
)

VOCABULARY = 256
NEW_TOKENS = 12
# On a CPU, vLLM has attention kernels for head dims of 32 and more.
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": 2,
}
HYPENET: dict[str, Any] = {
    **_COMMON,
    "num_hidden_layers": 5,
    "mixer_types": ["lightning-attn", "attn", "lightning-attn", "lightning_attn", "attn"],
    "attn_use_rope": False,
    "attn_use_output_gate": True,
    "lightning_nkv": 4,
    "lightning_use_qk_norm": True,
    "lightning_use_output_norm": True,
    "lightning_use_output_gate": True,
    "tie_word_embeddings": True,
    "rope_theta": 1000000.0,
}
JET: dict[str, Any] = {
    **_COMMON,
    "num_hidden_layers": 6,
    "layer_types": ["jet", "jet", "attn", "swa", "swa", "jet"],
    "efficient_attention_config": {
        "jet": {"num_heads": 4, "head_dim": 24, "expand_v": 2.6666666667},
        "swa": {"window_size": 100},
    },
}


def save_hypenet(folder: Path, **changes: Any) -> Path:
    """Save a random HypeNet in float32."""
    return _save(HypeNetForCausalLM, HypeNetConfig(**{**HYPENET, **changes}), folder)


def save_jet(folder: Path, **changes: Any) -> Path:
    """Save a random Jet-Nemotron in float32."""
    return _save(JetNemotronForCausalLM, JetNemotronConfig(**{**JET, **changes}), folder)


def _save(model_class: Any, config: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    model = model_class(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if "norm" in name:
                parameter.copy_(1 + 0.2 * noise)
            elif "embed" in name:
                parameter.copy_(0.3 * noise)
            elif parameter.ndim == 2:
                parameter.copy_(1.3 * noise * parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    return folder


def word_of(token: int) -> str:
    """Return the word of a token id; no word is a part of another."""
    return f"t{token:03}"


def save_tokenizer(folder: Path) -> None:
    """Save a tokenizer of the model's vocabulary, in which token 2 ends an answer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word_of(i): i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=word_of(0)))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=word_of(0), eos_token=word_of(2)
    ).save_pretrained(folder)


def mixed_prompts() -> list[list[int]]:
    """Return prompts of 1 to 1,500 tokens; some begin alike, as with a needle at another place."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, VOCABULARY, (1700,), generator=generator).tolist()
    prompts = [tokens[:n] for n in (1, 2, 63, 64, 65, 300, 511, 900, 1500)]
    prompts += [tokens[:700] + tokens[900:1300], tokens[:700] + tokens[100:500]]
    return [*prompts, tokens[7:8], tokens[:1024] + tokens[:77]]


@dataclass(frozen=True)
class Comparison:
    """Answers of vLLM compared with the logits of transformers."""

    tokens: int  # the number of tokens that were compared
    distinct: int  # how many of them differ from each other
    wrong: int  # how many are not the most likely token of transformers
    largest_error: float  # of a log-probability
    cached: list[int]  # the number of tokens of each prompt that came from the prefix cache


def compare(llm: Any, folder: Path, **overrides: Any) -> Comparison:
    """Have vLLM answer all prompts greedily, and compare each token and its log-probability."""
    from vllm import SamplingParams

    prompts = mixed_prompts()
    params = SamplingParams(
        max_tokens=NEW_TOKENS, temperature=0, logprobs=1, ignore_eos=True, detokenize=False
    )
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = llm.generate(inputs, params, use_tqdm=False)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", **overrides).eval()
    answers, wrong, worst = [], 0, 0.0
    for prompt, output in zip(prompts, outputs, strict=True):
        answer = list(output.outputs[0].token_ids)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        expected = logits.double().log_softmax(dim=-1)
        wrong += sum(a != b for a, b in zip(answer, expected.argmax(-1).tolist(), strict=True))
        for place, entry in enumerate(output.outputs[0].logprobs):
            token = answer[place]
            worst = max(worst, abs(entry[token].logprob - float(expected[place, token])))
        answers += answer
    cached = [output.num_cached_tokens for output in outputs]
    return Comparison(len(answers), len(set(answers)), wrong, worst, cached)
