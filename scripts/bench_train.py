"""Overhead of the training loop on a CPU, and the time of a training step on a GPU.

python scripts/bench_train.py            # CPU: the loop with a tiny model, and attention kernels
python scripts/bench_train.py --gpu      # one GPU: SFT of a HypeNet-2B, compared with HF's Trainer
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel

from amnesia_bench.config.load import load_training
from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.costs.estimate import estimate_training
from amnesia_bench.costs.gpus import GPUS
from amnesia_bench.costs.model_shape import named_shape
from amnesia_bench.modeling import HypeNetForCausalLM
from amnesia_bench.modeling.named_configs import load_model_config
from amnesia_bench.tracking.metrics_file import MetricsFile
from amnesia_bench.training.batches import Batches, FileOrder
from amnesia_bench.training.checkpoints import CheckpointFolder
from amnesia_bench.training.loop import Loop, LoopParts, StepRecord
from amnesia_bench.training.models import build_learner
from amnesia_bench.training.processes import joined_processes
from amnesia_bench.weights.checkpoint import open_checkpoint

UNCOUNTED_STEPS = 3


@dataclass(frozen=True)
class Row:
    """One sequence of prepared data."""

    tokens: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    document_lengths: tuple[int, ...]


class RandomRows:
    """Random documents, three of four tokens trained.

    All documents have `document_tokens` tokens; if it is None, lengths are random.
    """

    tokenizer_sha256, isolate_documents = "", True

    def __init__(self, count: int, tokens: int, vocab: int, document_tokens: int | None) -> None:
        rng = np.random.default_rng(0)
        self.num_sequences, self.sequence_tokens = count, tokens

        def lengths() -> tuple[int, ...]:
            if document_tokens is not None:
                return (document_tokens,) * (tokens // document_tokens)
            cuts = np.sort(rng.choice(np.arange(1, tokens), rng.integers(1, 6), replace=False))
            return tuple(np.diff([0, *cuts, tokens]).tolist())

        self._rows = [
            Row(
                rng.integers(0, vocab, tokens, dtype=np.int32),
                rng.random(tokens) < 0.75,
                lengths(),
            )
            for _ in range(count)
        ]

    def sequence(self, index: int) -> Row:
        """Return a sequence."""
        return self._rows[index]


Seconds = tuple[float, float]  # in compute, in all else


def observe_training(
    run: TrainingRun,
    init: Path,
    rows: RandomRows,
    folder: Path,
    observe: Callable[[StepRecord, Seconds], None],
) -> None:
    """Train in this process, from the newest training checkpoint in `folder` if it has one."""
    folder.mkdir(exist_ok=True)
    with joined_processes() as processes:
        learner = build_learner(run, open_checkpoint(init), None, processes)
        loop = Loop(
            LoopParts(
                run=run,
                learner=learner,
                batches=Batches(run, {"sft": rows}, FileOrder([rows.num_sequences]), 0, 1),
                checkpoints=CheckpointFolder(
                    folder, run.train.checkpoints, processes, records=lambda _: {}
                ),
                processes=processes,
                record=observe,
                stop_requested=lambda: False,
            )
        )
        saved = loop.start()
        loop.run(0 if saved is None else saved.step)


def train_steps(run: TrainingRun, init: Path, rows: RandomRows) -> list[tuple[StepRecord, Seconds]]:
    """Train and return the record of each step, and its seconds."""
    steps: list[tuple[StepRecord, Seconds]] = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        MetricsFile(Path(scratch) / "metrics.jsonl") as metrics,
    ):

        def record(step: StepRecord, spent: Seconds) -> None:
            metrics.append({"step": step.step, "loss": step.loss, "norm": step.grad_norm})
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            steps.append((step, spent))

        observe_training(run, init, rows, Path(scratch), record)
    return steps


def steps_of_the_loop(run: TrainingRun, init: Path, rows: RandomRows) -> list[Seconds]:
    """Train and return the seconds of the steps that count."""
    return [seconds for _, seconds in train_steps(run, init, rows)[UNCOUNTED_STEPS:]]


def sft(name: str, overrides: list[str], steps: int) -> TrainingRun:
    """Return a committed SFT with a few steps and no saves."""
    common = [
        f"train.steps={steps}",
        "train.optimizer.warmup_steps=1",
        "train.checkpoints.every_steps=100000",
        "~train.mixture.miromind",
        "train.mixture.sft=1.0",
    ]
    return load_training(name, [*common, *overrides])


def random_checkpoint(folder: Path, size: str) -> Path:
    """Write random weights in bfloat16."""
    torch.manual_seed(0)
    HypeNetForCausalLM(load_model_config(size)).bfloat16().save_pretrained(folder)
    return folder


def bench_cpu() -> None:
    torch.set_num_threads(1)
    tokens = 512
    overrides = [f"train.sequence_tokens={tokens}", "train.global_batch=8", "train.micro_batch=2",
                 "train.compute_dtype=fp32", "train.activation_checkpointing=none",
                 "train.compile=false"]  # fmt: skip
    run = sft("sft_miromind_2b", overrides, 40)
    with tempfile.TemporaryDirectory() as scratch:
        init = random_checkpoint(Path(scratch) / "init", "tiny")
        seconds = steps_of_the_loop(run, init, RandomRows(64, tokens, 257, 128))
    share = [other / (compute + other) for compute, other in seconds]
    step = statistics.median(compute + other for compute, other in seconds)
    print(
        "## Training\n\nThe training loop with HypeNet-tiny (0.2 M parameters), one thread: 37 "
        "steps of 4 micro-batches\nof 2 x 512 tokens. *Outside* is everything except forward pass, "
        "backward pass, clipping and the\noptimizer: reading data, counting tokens, agreement "
        "between processes, logging. *Smallest* and\n*largest* are shares of single steps.\n\n"
        "| step ms | outside ms | share outside (target 3 %) | smallest | largest |\n"
        "|---|---|---|---|---|"
    )
    outside = statistics.median(other for _, other in seconds)
    print(
        f"| {step * 1e3:.0f} | {outside * 1e3:.2f} | {statistics.median(share):.2%} | "
        f"{min(share):.2%} | {max(share):.2%} |"
    )


def attention_ms(tokens: int, kernel: SDPBackend) -> float:
    """Return the milliseconds of forward and backward over 2,048 tokens in rows of `tokens`."""
    query, key, value = torch.randn(3, 2048 // tokens, 4, tokens, 32).bfloat16().unbind()
    inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
    seconds = []
    for _ in range(UNCOUNTED_STEPS + 10):
        began = time.perf_counter()
        with sdpa_kernel(kernel):
            mixed = torch.nn.functional.scaled_dot_product_attention(*inputs, is_causal=True)
        mixed.sum().backward()
        seconds.append(time.perf_counter() - began)
    return min(seconds[UNCOUNTED_STEPS:]) * 1e3


def bench_attention() -> None:
    torch.set_num_threads(1)
    print(
        "Causal attention, forward and backward, bfloat16, 4 heads of 32, 2,048 tokens, one "
        "thread; best of\n10. *Fused* is PyTorch's flash kernel, *plain* its math kernel. The loop "
        "uses the plain one up to\n192 tokens.\n\n"
        "| tokens per row | fused ms | plain ms | plain / fused |\n|---|---|---|---|"
    )
    for tokens in (64, 128, 256, 512, 1024):
        fused, plain = (
            attention_ms(tokens, kernel) for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)
        )
        print(f"| {tokens:,} | {fused:.1f} | {plain:.1f} | {plain / fused:.2f} |")


def bench_gpu() -> None:
    tokens, batch, steps = 16_384, 4, 10
    run = sft("sft_miromind_2b", [f"train.global_batch={batch}"], steps)
    rows = RandomRows(batch, tokens, 151_936, 4096)
    flops = estimate_training(run, named_shape("hypenet_2b"), 1, GPUS["h200"]).flops_per_token
    peak = GPUS["h200"].flops_per_second
    figures: dict[str, Any] = {"device": torch.cuda.get_device_name(), "assumed_peak_flops": peak}
    with tempfile.TemporaryDirectory() as scratch:
        init = random_checkpoint(Path(scratch) / "init", "2b")
        torch.cuda.reset_peak_memory_stats()
        ours = steps_of_the_loop(run, init, rows)
        step = statistics.median(compute + other for compute, other in ours)
        figures["amnesia"] = _figures(batch * tokens / step, flops, peak)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step = trainer_step_seconds(init, rows, batch, Path(scratch) / "trainer", steps)
        figures["trainer"] = _figures(batch * tokens / step, flops, peak)
    speeds = [figures[name]["tokens_per_second"] for name in ("amnesia", "trainer")]
    figures["times_trainer"] = speeds[0] / speeds[1]
    print(f"```json\n{json.dumps(figures, indent=2)}\n```")


def _figures(tokens_per_second: float, flops: float, peak: float) -> dict[str, float]:
    return {
        "tokens_per_second": tokens_per_second,
        "mfu": tokens_per_second * flops / peak,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def trainer_step_seconds(
    init: Path, rows: RandomRows, batch: int, folder: Path, steps: int
) -> float:
    """Return the median seconds of a step of transformers' Trainer on the same rows."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    def example(row: Row) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(row.tokens.astype(np.int64))
        starts = np.concatenate([np.arange(n) for n in row.document_lengths])
        mask = torch.from_numpy(row.loss_mask & (starts > 0))
        return {
            "input_ids": ids,
            "labels": torch.where(mask, ids, -100),
            "position_ids": torch.from_numpy(starts),
        }

    ends: list[float] = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    model = HypeNetForCausalLM.from_pretrained(init, dtype=torch.float32)
    data = [example(rows.sequence(i)) for i in range(rows.num_sequences)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=batch,
        max_steps=steps,
        learning_rate=1e-5,
        adam_beta2=0.95,
        lr_scheduler_type="constant",
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_strategy="no",
        report_to=[],
        logging_steps=1,
    )
    Trainer(model=model, args=arguments, train_dataset=data, callbacks=[Watch()]).train()
    return statistics.median(np.diff(ends)[UNCOUNTED_STEPS - 1 :].tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="a HypeNet-2B on one CUDA GPU")
    arguments = parser.parse_args()
    if arguments.gpu and not torch.cuda.is_available():
        parser.error("--gpu needs a CUDA GPU; this machine has none")
    if arguments.gpu:
        bench_gpu()
    else:
        bench_cpu()
        print()
        bench_attention()


if __name__ == "__main__":
    main()
