"""Slow and obvious references, written from the formulas alone."""

import torch
from torch import Tensor


def recurrence(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, scale: float, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """S_t = gamma S_(t-1) + k_t v_t^T ; o_t = scale q_t^T S_t, one token after another."""
    batch, num_tokens, heads, key_dim = q.shape
    if state is None:
        state = q.new_zeros(batch, heads, key_dim, v.shape[-1])
    gamma = log_decay.to(q.dtype).exp()[:, None, None]
    outputs = []
    for t in range(num_tokens):
        state = gamma * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t] * scale, state))
    return torch.stack(outputs, dim=1), state


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def rope(x: Tensor, theta: float) -> Tensor:
    """Rotate pairs (i, i + D/2) of x [B, T, H, D] by t * theta^(-2i/D)."""
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequency
    turned = torch.polar(torch.ones_like(angle), angle)[None, :, None]
    z = torch.complex(x[..., :half].double(), x[..., half:].double()) * turned
    return torch.cat([z.real, z.imag], dim=-1).to(x.dtype)
