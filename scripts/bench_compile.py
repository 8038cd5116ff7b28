"""Losses and times of compiled and recomputed training next to plain eager training, on a CPU.

OMP_NUM_THREADS=1 python scripts/bench_compile.py
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch

from bench_train import RandomRows, random_checkpoint, sft, train_steps

STEPS = 200
TOKENS = 96
# Each row is trained on many times, so the losses fall.
ROWS = 8
# The first one is the reference.
SETTINGS = [(False, "none"), (False, "full"), (True, "none"), (True, "selective")]


def bench(size: str, folder: Path) -> None:
    """Train one model with each setting, and print one line of the table for each."""
    init = random_checkpoint(folder / size, size)
    reference: list[float] = []
    for compiled, policy in SETTINGS:
        overrides = [
            f"train.sequence_tokens={TOKENS}",
            "train.global_batch=1",
            "train.micro_batch=1",
            "train.compute_dtype=fp32",
            "train.optimizer.learning_rate=1e-3",
            f"train.compile={str(compiled).lower()}",
            f"train.activation_checkpointing={policy}",
        ]
        torch._dynamo.reset()
        run = sft("sft_miromind_2b", overrides, STEPS)
        steps = train_steps(run, init, RandomRows(ROWS, TOKENS, 257, None))
        losses = [record.loss for record, _ in steps]
        reference = reference or losses
        difference = [abs(a - b) / b for a, b in zip(losses, reference, strict=True)]
        seconds = [compute for _, (compute, _) in steps]
        typical = statistics.median(seconds)
        print(
            f"| {size} | {'compiled' if compiled else 'eager'} | {policy} | {losses[0]:.3f} | "
            f"{losses[-1]:.3f} | {difference[0]:.0e} | {max(difference):.0e} | "
            f"{typical * 1e3:.0f} | {seconds[0] - typical:.0f} |",
            flush=True,
        )


def main() -> None:
    torch.set_num_threads(1)
    print(
        f"HypeNets with random weights, {STEPS} steps of one row of {TOKENS} tokens with "
        "2 to 6 documents;\nAdamW at 1e-3, float32, one thread. *Difference* is that of the loss, "
        "relative to the same step of the\nfirst line. *Compilation* is the time of the first step "
        "beyond the median.\n\n"
        "| model | blocks | checkpointing | first loss | last loss | difference, step 1 | largest "
        "difference | median step ms | compilation s |\n|---|---|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for size in ("tiny", "laptop"):
            bench(size, Path(folder))


if __name__ == "__main__":
    main()
