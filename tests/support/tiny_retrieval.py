"""A model of 130,000 parameters that learns to look things up, trained on the spot.

A prompt is `k05 v17 k30 v02 ... ? k30`, its answer `v02`: recall and nothing else. A two-layer
softmax transformer with Muon learns it in 300 to 450 steps (three of three seeds) if it begins with
4 pairs and goes on to more when it can; 24 pairs from the start taught it nothing in 400.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

NAMES = 32
WORDS = ["<unk>", "?", "<eos>", "<pad>"]
FIRST_KEY, FIRST_VALUE = len(WORDS), len(WORDS) + NAMES
WORDS += [f"k{i:02}" for i in range(NAMES)] + [f"v{i:02}" for i in range(NAMES)]
CURRICULUM = (4, 8, 16, 24)  # pairs
MAX_STEPS = 1500


@dataclass(frozen=True)
class LookupPromptSet:
    """Prompts of `pairs` pairs; the length is theirs in tokens, the depth that of the pair."""

    pairs: int
    size: int
    task: str = "lookup"

    @property
    def context_tokens(self) -> int:
        return 2 * self.pairs + 2

    @property
    def name(self) -> str:
        return f"{self.task}@{self.context_tokens}"

    @property
    def sha256(self) -> str:
        return f"{self.pairs:064x}"

    def __len__(self) -> int:
        return self.size

    def _drawn(self, i: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        rng = np.random.default_rng([self.pairs, i])
        keys = rng.permutation(NAMES)[: self.pairs]
        return keys, rng.integers(NAMES, size=self.pairs), int(rng.integers(self.pairs))

    def tokens(self, i: int) -> NDArray[np.int32]:
        keys, values, asked = self._drawn(i)
        pairs = np.stack([keys + FIRST_KEY, values + FIRST_VALUE], axis=-1).ravel()
        return np.array([*pairs, WORDS.index("?"), keys[asked] + FIRST_KEY], np.int32)

    def values(self, i: int) -> tuple[str, ...]:
        _, values, asked = self._drawn(i)
        return (WORDS[FIRST_VALUE + values[asked]],)

    def depth_percent(self, i: int) -> float:
        return 100 * self._drawn(i)[2] / (self.pairs - 1)

    def needle_span(self, i: int) -> tuple[int, int]:
        asked = self._drawn(i)[2]
        return (2 * asked, 2 * asked + 2)


def train(folder: Path) -> Path:
    """Train the model, and save it with its tokenizer."""
    torch.manual_seed(1)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(WORDS), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
            max_position_embeddings=256, eos_token_id=2, pad_token_id=3, bos_token_id=None,
        )
    )  # fmt: skip
    matrices, others = [], []
    for name, weight in model.named_parameters():
        (matrices if weight.ndim == 2 and "layers" in name else others).append(weight)
    optimizers = [
        (torch.optim.Muon(matrices, weight_decay=0.0), 7.5e-3),
        (torch.optim.AdamW(others, weight_decay=0.0), 1.5e-3),
    ]
    rng = torch.Generator().manual_seed(1)
    level, loss = 0, 1.0
    for step in range(MAX_STEPS):
        for optimizer, rate in optimizers:
            optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 30)
        inputs, labels = _batch(rng, CURRICULUM[level])
        error = model(inputs, labels=labels).loss
        error.backward()
        for optimizer, _ in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        loss = 0.9 * loss + 0.1 * error.item()
        if level + 1 < len(CURRICULUM) and loss < 0.25:
            level, loss = level + 1, 1.0
        elif loss < 0.03:
            break
    else:
        raise AssertionError(f"no retrieval after {MAX_STEPS} steps")
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def noised(source: Path, folder: Path, *, everywhere: float, routing: float, seed: int) -> Path:
    """Copy a checkpoint with noise on its matrices, in units of their standard deviation.

    Args:
        source: the checkpoint.
        folder: where to write the copy.
        everywhere: noise on every matrix, as a fine-tune moves them all.
        routing: more noise, on W_Q and W_K alone.
        seed: of the noise.
    """
    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    rng = torch.Generator().manual_seed(seed)
    weights = load_file(path)
    for name, weight in weights.items():
        if weight.ndim == 2:
            is_routing = "q_proj" in name or "k_proj" in name
            scale = (everywhere + routing * is_routing) * weight.std()
            weights[name] = weight + scale * torch.randn(weight.shape, generator=rng)
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def _batch(rng: torch.Generator, pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return prompts with 12 questions each: inputs [32, T], and labels at the answers."""
    size, questions = 32, 12
    keys = torch.rand(size, NAMES, generator=rng).argsort(dim=1)[:, :pairs] + FIRST_KEY
    values = torch.randint(NAMES, (size, pairs), generator=rng) + FIRST_VALUE
    asked = torch.randint(pairs, (size, questions), generator=rng)
    told = torch.stack([keys, values], dim=-1).flatten(1)
    answers = torch.stack([keys.gather(1, asked), values.gather(1, asked)], dim=-1).flatten(1)
    inputs = torch.cat([told, torch.full((size, 1), WORDS.index("?")), answers], dim=1)
    labels = torch.full_like(inputs, -100)
    labels[:, 2 * pairs + 2 :: 2] = inputs[:, 2 * pairs + 2 :: 2]
    return inputs, labels


def _tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>"
    )
