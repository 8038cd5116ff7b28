"""A softmax transformer whose weights are written by hand: its retrieval heads are known.

Layer 0 has one head that attends to the previous token and writes it next to the current one. In
layer 1, the heads in RETRIEVAL attend to the first token whose predecessor is the current token
(induction), and write it to the output. All other heads are zero.

The hidden state has three blocks of WIDTH: the token, the previous token, the predicted token. A
token is a random vector of signs. The frequencies of RoPE fall from 1 to 1e-12, so the first ones
can tell the previous token from others, and the last ones turn no vector that is looked up.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

WIDTH, HEAD_DIM, HEADS, KV_HEADS = 64, 128, 6, 2
RETRIEVAL = ((1, 3), (1, 5))  # both read KV head 1, as the idle 1.4 does
_TURNING, _SLOW = slice(0, 11), 16  # pairs of RoPE: frequencies 1 to 0.01, and 1e-3


def induction_model(vocabulary: int = 258) -> LlamaForCausalLM:
    """Build the model for a vocabulary of this size."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=3 * WIDTH, intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM,
        attention_bias=True, tie_word_embeddings=False, max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 1e12}, rms_norm_eps=1e-12,
        bos_token_id=None, eos_token_id=vocabulary - 1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    tokens = torch.randn(vocabulary, WIDTH, generator=torch.Generator().manual_seed(0)).sign()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight[:, :WIDTH] = tokens
        model.lm_head.weight[:, 2 * WIDTH :] = tokens
        first, second = (layer.self_attn for layer in model.model.layers)
        _attend_to_previous_token(first)
        for _, head in RETRIEVAL:
            _induction(second, head)
    return model


def _attend_to_previous_token(attention: torch.nn.Module) -> None:
    half = HEAD_DIM // 2
    frequency = 1e12 ** (-2 * torch.arange(half) / HEAD_DIM)[_TURNING]
    strength = 20.0
    attention.q_proj.bias[_TURNING] = strength
    # The key is turned by one position more, so it fits the query of the next position best.
    attention.k_proj.bias[_TURNING] = strength * frequency.cos()
    attention.k_proj.bias[half:][_TURNING] = strength * frequency.sin()
    # Normalised tokens have the length sqrt(3) while two of three blocks are empty.
    attention.v_proj.weight[:WIDTH, :WIDTH] = torch.eye(WIDTH) / 3**0.5
    attention.o_proj.weight[WIDTH : 2 * WIDTH, :WIDTH] = torch.eye(WIDTH)


def _induction(attention: torch.nn.Module, head: int) -> None:
    half, kv_head = HEAD_DIM // 2, head * KV_HEADS // HEADS
    still = torch.cat([torch.arange(half // 2, half), torch.arange(half + half // 2, HEAD_DIM)])
    query, key = head * HEAD_DIM, kv_head * HEAD_DIM
    attention.q_proj.weight[query + still, :WIDTH] = 20.0 * torch.eye(WIDTH)
    attention.k_proj.weight[key + still, WIDTH : 2 * WIDTH] = torch.eye(WIDTH)
    # Of several predecessors that fit, the first one is preferred.
    attention.q_proj.bias[query + _SLOW] = 10.0
    attention.k_proj.bias[key + _SLOW] = -10.0
    attention.v_proj.weight[key : key + WIDTH, :WIDTH] = torch.eye(WIDTH)
    attention.o_proj.weight[2 * WIDTH :, query : query + WIDTH] = torch.eye(WIDTH)


def expected_copies(tokens: list[int], needle: tuple[int, int], answer: int) -> tuple[int, int]:
    """Return how many tokens of the answer the retrieval heads copy, and how many could be."""
    copyable = [t for t in range(answer, len(tokens)) if tokens[t] in tokens[slice(*needle)]]
    copied = 0
    for t in copyable:
        seen = tokens[:t]
        after = [j for j in range(1, t) if seen[j - 1] == seen[-1]]
        source = after[0] if after else None
        copied += source is not None and source in range(*needle) and tokens[source] == tokens[t]
    return copied, len(copyable)
