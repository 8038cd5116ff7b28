"""Speed of the HypeNet model, compared with simpler implementations.

python scripts/bench_modeling.py              # CPU
python scripts/bench_modeling.py --gpu 2b     # prefill of random weights on one CUDA GPU
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from amnesia_bench.modeling import (
    HypeNetCache,
    HypeNetConfig,
    HypeNetForCausalLM,
    alibi_log_decay,
    lightning_attention,
)
from amnesia_bench.modeling.lightning_torch import CHUNK
from amnesia_bench.modeling.named_configs import load_model_config

NUM_TOKENS = 4096
# (heads, head dim): the linear mixer of HypeNet-2B, and that of a small model.
SHAPES = ((16, 128), (8, 64))


def best_seconds(run: Callable[[], object], repeats: int) -> float:
    """Return the best time of several calls, since other load can only add to it."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def textbook_recurrence(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """The two formulas, one token after another, as fla's naive reference writes them."""
    gamma = log_decay.exp()[:, None, None]
    state = q.new_zeros(1, *q.shape[2:], q.shape[3])
    outputs = []
    scaled = q * q.shape[3] ** -0.5
    for t in range(q.shape[1]):
        state = state * gamma + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((scaled[:, t, :, :, None] * state).sum(dim=2))
    return torch.stack(outputs, dim=1)


def tuned_recurrence(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """The same loop in place with batched products: the fastest plain loop we found."""
    gamma = log_decay.exp()[:, None, None]
    state = q.new_zeros(*q.shape[2:], q.shape[3])
    outputs = torch.empty_like(v)
    scaled = q * q.shape[3] ** -0.5
    for t in range(q.shape[1]):
        state.mul_(gamma).baddbmm_(k[0, t, :, :, None], v[0, t, :, None, :])
        outputs[0, t] = torch.bmm(scaled[0, t, :, None, :], state)[:, 0]
    return outputs


def own_matmuls(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Run the matrix products of the chunked form and nothing else."""
    state = q.new_zeros(1, *q.shape[2:], q.shape[3])
    for start in range(0, NUM_TOKENS, CHUNK):
        qc, kc, vc = (x[:, start : start + CHUNK].transpose(1, 2) for x in (q, k, v))
        _ = (qc @ kc.mT) @ vc
        _ = qc @ state
        _ = kc.mT @ vc


def bench_linear_prefill(heads: int, head_dim: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, NUM_TOKENS, heads, head_dim)
    q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
    decay = alibi_log_decay(heads)
    expected = textbook_recurrence(q, k, v, decay)
    error = (lightning_attention(q, k, v, decay)[0] - expected).abs().max() / expected.abs().max()
    seconds = {
        "chunked": best_seconds(lambda: lightning_attention(q, k, v, decay), 15),
        "own_matmul": best_seconds(lambda: own_matmuls(q, k, v), 15),
        "textbook_recurrence": best_seconds(lambda: textbook_recurrence(q, k, v, decay), 2),
        "tuned_recurrence": best_seconds(lambda: tuned_recurrence(q, k, v, decay), 2),
    }
    chunked = seconds["chunked"]
    return {
        **{f"{name}_ms": value * 1e3 for name, value in seconds.items()},
        "times_faster_than_textbook": seconds["textbook_recurrence"] / chunked,
        "times_faster_than_tuned": seconds["tuned_recurrence"] / chunked,
        "times_own_matmul": chunked / seconds["own_matmul"],
        "relative_error": float(error),
    }


def bench_decode(mixer: str) -> dict[str, float]:
    """Milliseconds per decoded token of a small model of one kind of layer, by context."""
    config = HypeNetConfig(
        vocab_size=256,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
        mixer_types=[mixer] * 4,
        max_position_embeddings=65536,
        attn_use_rope=False,
    )
    model = HypeNetForCausalLM(config).eval()
    token, figures = torch.tensor([[7]]), {}
    for context in (1024, 4096, 16384):
        cache = HypeNetCache(config)
        for part in torch.randint(0, 256, (1, context)).split(1024, dim=1):
            model(part, past_key_values=cache, logits_to_keep=1)
        step = best_seconds(lambda: model(token, past_key_values=cache), 101)  # noqa: B023
        figures[str(context)] = step * 1e3
    return figures


def bench_gpu_prefill(size: str) -> dict[str, object]:
    """Prefill random weights in bf16; the limit is a large square matmul on the same device."""
    device = torch.device("cuda")
    config = load_model_config(size)
    with torch.device(device):
        model = HypeNetForCausalLM(config).to(torch.bfloat16).eval()
    limit = _matmul_flops_per_second(device)
    figures: dict[str, object] = {
        "device": torch.cuda.get_device_name(),
        "bf16_matmul_tflops": limit / 1e12,
    }
    for num_tokens in (32 * 1024, 256 * 1024):
        ids = torch.randint(0, config.vocab_size, (1, num_tokens), device=device)
        torch.cuda.reset_peak_memory_stats()

        def run(ids: Tensor = ids) -> None:
            # In one piece, which takes the fewest launches; bench_engines.py reads in pieces.
            model(ids, past_key_values=HypeNetCache(config), logits_to_keep=1)
            torch.cuda.synchronize()

        seconds = best_seconds(run, 3)
        figures[str(num_tokens)] = {
            "tokens_per_second": num_tokens / seconds,
            "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
            "share_of_matmul_limit": _prefill_flops(model, num_tokens) / seconds / limit,
        }
    return figures


def _prefill_flops(model: HypeNetForCausalLM, num_tokens: int) -> float:
    """Two per weight and token (head left out), plus the products of the mixers."""
    config = model.config
    weights = sum(p.numel() for p in model.model.layers.parameters())
    softmax = len(config.softmax_layers)
    attended = num_tokens * (num_tokens + 1) / 2
    attention = softmax * 4 * attended * config.num_attention_heads * config.head_dim
    d = config.lightning_head_dim
    per_token = 4 * CHUNK * d + 4 * d * d
    linear = (config.num_hidden_layers - softmax) * num_tokens * config.lightning_nh * per_token
    return 2.0 * weights * num_tokens + attention + linear


def _matmul_flops_per_second(device: torch.device) -> float:
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)

    def run() -> None:
        for _ in range(20):
            torch.mm(a, a)
        torch.cuda.synchronize()

    return 20 * 2 * 8192**3 / best_seconds(run, 5)


def print_cpu() -> None:
    print(
        f"\nPrefill of one linear mixer, {NUM_TOKENS:,} tokens, float32. *Textbook*: the two "
        "formulas of the recurrence,\ntoken by token. *Tuned*: the same loop with in-place "
        "operations. *Its own matmuls*: only the matrix\nproducts of the chunked form.\n\n"
        "| heads x dim | chunked ms | its own matmuls ms | textbook ms | tuned ms | textbook / "
        "chunked (target 15) | tuned / chunked | chunked / matmuls (target below 2) |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    for heads, head_dim in SHAPES:
        f = bench_linear_prefill(heads, head_dim)
        print(
            f"| {heads} x {head_dim} | {f['chunked_ms']:.1f} | {f['own_matmul_ms']:.1f} | "
            f"{f['textbook_recurrence_ms']:.0f} | {f['tuned_recurrence_ms']:.0f} | "
            f"{f['times_faster_than_textbook']:.1f} | {f['times_faster_than_tuned']:.1f} | "
            f"{f['times_own_matmul']:.2f} |"
        )
    print(
        "\nDecoding: milliseconds per token of a 4-layer model with one kind of mixer, by context "
        "length in\ntokens. For linear layers the time should not depend on the context.\n\n"
        "| mixer | 1,024 | 4,096 | 16,384 |\n|---|---|---|---|"
    )
    for mixer in ("lightning-attn", "attn"):
        print(
            f"| {mixer} | " + " | ".join(f"{ms:.2f}" for ms in bench_decode(mixer).values()) + " |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", metavar="SIZE", help="prefill of this size on a CUDA GPU")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.gpu and not torch.cuda.is_available():
        parser.error("--gpu needs a CUDA GPU; this machine has none")
    print(
        "## HypeNet\n\nEach time is the best of several calls, since other load on the\nmachine "
        "can only add to it."
    )
    with torch.inference_mode():
        if arguments.gpu:
            print(f"\n```json\n{json.dumps(bench_gpu_prefill(arguments.gpu), indent=2)}\n```")
        else:
            print_cpu()


if __name__ == "__main__":
    main()
