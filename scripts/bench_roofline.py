"""Bound the speed of a training step from the FLOPs and bytes of its kernels; no GPU is needed.

python scripts/bench_roofline.py                            # SFT of all models, before and after
python scripts/bench_roofline.py --model 2b --stage stage2
python scripts/bench_roofline.py --model 9b --recompute none selective full

The kernels of each configuration are saved in --folder, and are not counted again.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from amnesia_bench.config.assumptions import DOCUMENTS_PER_SEQUENCE
from amnesia_bench.config.load import load_model_file, load_training
from amnesia_bench.config.train_schema import TrainingRun
from amnesia_bench.costs.estimate import estimate_training
from amnesia_bench.costs.gpus import GPUS, KERNEL_RATES
from amnesia_bench.costs.model_shape import named_shape
from amnesia_bench.modeling import PackedRows, mixers
from amnesia_bench.modeling.lightning_attention import lightning_attention
from amnesia_bench.training import objectives
from amnesia_bench.training.batches import MicroBatch
from amnesia_bench.training.dry_run.compiled_kernels import CompiledGraph, counted_compilation
from amnesia_bench.training.dry_run.fake_training import fake_training
from amnesia_bench.training.dry_run.kernel_costs import Kernel, KernelCounter, KernelKind

CONFIGS = {"sft": "sft_miromind", "stage1": "stage1", "stage2": "stage2", "stage3": "stage3"}
PROCESSES = 8
HEAD = """\
## Training step, by calculation

Nothing here was run on a GPU. The forward and backward pass of one micro-batch run on tensors
without data, with FSDP over 8 GPUs. Each kernel takes the longer of FLOPs / rate and bytes /
bandwidth (`KERNEL_RATES` in `costs/gpus.py`: assumed 75 % of the peak FLOPs and 85 % of the
bandwidth on an H100). Communication, FSDP's copies, launches and the optimizer are left out, so
these are **upper bounds** of the speed. A sequence of SFT has 16,384 tokens in 4 documents.

*Eager*: every operation is a kernel. *Compiled*: the kernels that TorchInductor schedules for a
CUDA device of which only the properties exist; each reads and writes every buffer once. Attention
is modelled: fla's chunked kernels (float32 operands before, bfloat16 after) and flash attention.
*Recomputed*: `train.activation_checkpointing`. *MFU* counts model FLOPs without recomputation
against the peak of 989 TFLOP/s. *Loss*: the share of the head and the loss. *Kept*: activations
that compiled blocks keep for the backward pass.

| config | GPU | blocks, recomputed | matmul ms | elementwise ms (GB) | lightning ms | softmax ms \
| step ms | MFU at most | tokens/s per GPU | kernels | loss | kept GB |
|---|---|---|---|---|---|---|---|---|---|---|---|---|"""
# Before: eager blocks, all activations recomputed, float32 operands of lightning attention.
BEFORE = ("train.compile=false", "train.activation_checkpointing=full")


@dataclass
class Count:
    """The kernels of one micro-batch on one GPU, by the part of the step that launches them.

    `kept_bytes` are those of the activations that compiled blocks keep for the backward pass.
    """

    kernels: Counter[tuple[str, Kernel]]
    kept_bytes: int


def count(run: TrainingRun, before: bool) -> Count:
    """Run the forward and backward pass of one micro-batch on tensors without data."""
    counters: list[KernelCounter] = []
    graphs: list[CompiledGraph] = []
    parts = ["forward"]

    def observe(_: object) -> list[KernelCounter]:
        counters.append(KernelCounter(lambda: parts[-1]))
        return counters

    def ran(graph: CompiledGraph) -> None:
        graphs.append(graph)
        counters[0].add(graph.kernels)

    assert run.train.model is not None
    with ExitStack() as stack:
        stack.enter_context(counted_compilation(ran))
        model = load_model_file(run.train.model)
        training = stack.enter_context(fake_training(run, model, PROCESSES, observe))
        stack.enter_context(operands_of_lightning(before))
        stack.enter_context(named_losses(parts))
        objective = training.learner.objective
        micro_batch = batch(run)
        counters[0].kernels.clear()  # those that built the models
        loss, _ = objective(micro_batch)
        parts[-1] = "backward"
        loss.backward()
    kept = sum(graph.returned_bytes for graph in graphs if not graph.is_backward)
    return Count(counters[0].kernels, kept)


@contextmanager
def operands_of_lightning(before: bool) -> Iterator[None]:
    """Before, the operands of lightning attention were float32 copies."""

    def with_float32(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        output, state = lightning_attention(q.float(), k.float(), v.float(), *rest)
        return output.to(q.dtype), state

    attend = with_float32 if before else lightning_attention
    with mock.patch.object(mixers, "lightning_attention", attend):
        yield


@contextmanager
def named_losses(parts: list[str]) -> Iterator[None]:
    """Count the kernels of the head and the loss, with their gradients, as the part `loss`."""

    def named(function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            parts.append("loss")
            try:
                return function(*args, **kwargs)
            finally:
                parts.pop()

        return run

    with ExitStack() as stack:
        for name in ("chunked_cross_entropy", "chunked_kl"):
            function = getattr(objectives, name)
            stack.enter_context(mock.patch.object(objectives, name, named(function)))
        yield


def batch(run: TrainingRun) -> MicroBatch:
    """Return a micro-batch without data: documents of equal length, every token trained."""
    rows, tokens = run.train.micro_batch, run.train.sequence_tokens
    packed = None
    if run.isolate_documents:
        total = rows * tokens
        step = tokens // DOCUMENTS_PER_SEQUENCE
        bounds = [*range(0, total, step), total]
        packed = PackedRows.from_cu_seqlens(bounds, total, torch.device("cpu"))
        rows, tokens = 1, total
    positions = torch.zeros(rows * tokens, dtype=torch.int64)
    return MicroBatch(
        input_ids=positions.view(rows, tokens),
        packed=packed,
        targets_at=positions,
        targets=positions,
    )


def saved_count(run: TrainingRun, before: bool, folder: Path) -> Count:
    """Return the count of a configuration from the folder, or count it and save it there."""
    train = run.train
    name = f"{train.name}-{'before' if before else train.activation_checkpointing}.json"
    path = folder / name
    if not path.exists():
        counted = count(run, before)
        rows = [
            [part, kernel.kind, kernel.name, kernel.flops, kernel.num_bytes, times]
            for (part, kernel), times in counted.kernels.items()
        ]
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"kernels": rows, "kept_bytes": counted.kept_bytes}))
    saved = json.loads(path.read_text())
    kernels = Counter(
        {
            (part, Kernel(KernelKind(kind), kernel, flops, num_bytes)): times
            for part, kind, kernel, flops, num_bytes, times in saved["kernels"]
        }
    )
    return Count(kernels, saved["kept_bytes"])


def model_flops(run: TrainingRun) -> float:
    """Return the model FLOPs per token, without recomputation."""
    assert run.train.model is not None
    shape = named_shape(run.train.model)
    if run.train.objective != "next_token":
        return estimate_training(run, shape, PROCESSES, GPUS["h100"]).flops_per_token
    documents = DOCUMENTS_PER_SEQUENCE if run.isolate_documents else 1
    mixing = shape.mixing_flops(run.train.sequence_tokens // documents)
    return 3 * (2 * shape.body + mixing + 2 * shape.embedding)


def row(run: TrainingRun, counted: Count, label: str, gpu: str) -> str:
    """Return a row of the table: least times on a GPU of this kind."""
    rates, times, num_bytes = KERNEL_RATES[gpu], Counter[KernelKind](), 0
    loss = 0.0
    for (part, kernel), launches in counted.kernels.items():
        seconds = launches * kernel.seconds(rates.flops_per_second, rates.bytes_per_second)
        times[kernel.kind] += seconds  # type: ignore[assignment]
        num_bytes += launches * kernel.num_bytes * (kernel.kind is KernelKind.ELEMENTWISE)
        loss += seconds * (part == "loss")
    step = sum(times.values())
    tokens = run.train.micro_batch * run.train.sequence_tokens
    mfu = model_flops(run) * tokens / step / GPUS[gpu].flops_per_second
    milliseconds = {kind: f"{times[kind] * 1e3:,.0f}" for kind in KernelKind}
    kept = f"{counted.kept_bytes / 1e9:.0f}" if counted.kept_bytes else ""
    cells = (
        run.train.name,
        gpu.upper(),
        label,
        milliseconds[KernelKind.MATMUL],
        f"{milliseconds[KernelKind.ELEMENTWISE]} ({num_bytes / 1e9:,.0f})",
        milliseconds[KernelKind.LIGHTNING],
        milliseconds[KernelKind.SOFTMAX],
        f"{step * 1e3:,.0f}",
        f"**{mfu:.1%}**",
        f"{tokens / step:,.0f}",
        f"{counted.kernels.total():,}",
        f"{loss / step:.0%}",
        kept,
    )
    return f"| {' | '.join(cells)} |"


def largest(counted: Count, gpu: str, rows: int) -> str:
    """Return the kernels other than products with the longest total times, in milliseconds."""
    rates, seconds = KERNEL_RATES[gpu], Counter[str]()
    for (part, kernel), launches in counted.kernels.items():
        if kernel.kind is not KernelKind.MATMUL:
            name = f"{kernel.name} ({part})"
            least = kernel.seconds(rates.flops_per_second, rates.bytes_per_second)
            seconds[name] += launches * least  # type: ignore[assignment]
    return ", ".join(f"{name} {value * 1e3:.0f}" for name, value in seconds.most_common(rows))


def variants(stage: str, size: str, recompute: list[str]) -> Iterator[tuple[TrainingRun, bool]]:
    """Yield the runs to compare, and whether each is the one before."""
    name = f"{CONFIGS[stage]}_{size}"
    if not recompute:
        yield load_training(name, list(BEFORE)), True
        yield load_training(name), False
    for policy in recompute:
        yield load_training(name, [f"train.activation_checkpointing={policy}"]), False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["2b", "5b", "9b"])
    parser.add_argument("--stage", nargs="+", default=["sft"], choices=CONFIGS)
    parser.add_argument("--gpu", nargs="+", default=["h100", "h200"], choices=KERNEL_RATES)
    parser.add_argument(
        "--recompute",
        nargs="+",
        default=[],
        help="compare these values of train.activation_checkpointing, instead of before and after",
    )
    parser.add_argument("--folder", type=Path, default=Path(".bench/roofline"))
    arguments = parser.parse_args()
    print(HEAD)
    lines = []
    for stage in arguments.stage:
        for size in arguments.model:
            for run, before in variants(stage, size, arguments.recompute):
                counted = saved_count(run, before, arguments.folder)
                label = "compiled" if run.train.compile else "eager"
                label += f", {run.train.activation_checkpointing}"
                for gpu in arguments.gpu:
                    print(row(run, counted, label, gpu), flush=True)
                lines.append(
                    f"- {run.train.name}, {label}: {largest(counted, arguments.gpu[0], 8)}"
                )
    print("\nLongest kernels that are no matrix products, ms on the first GPU:\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
