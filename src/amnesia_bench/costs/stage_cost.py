"""What a stage takes, before anything runs: tokens, FLOPs, GPU-hours, disk.

Arithmetic on shapes, without torch. N parameters without embeddings and with the head, L layers,
n tokens of a prompt, m of its answer at most, B rows of a batch.

    training          `costs.estimate`: steps x sequences x tokens. FLOPs are those of the model;
                      hours also count what activation checkpointing repeats.
    reading           per prompt n x (2 N without the head + attention over n tokens) + the head
                      once. Each prompt is read in full: prefixes that prompts share are read once
                      in fact, which saves NIAH 35 to 50 %, and repeats of a question too.
    answering         m tokens a prompt, the limit and not what a model makes of it, each 2 N and
                      attention over what is there. A step takes as long as the slower of two:
                      reading all weights and B caches (recurrent states are written back as well)
                      from the GPU's memory, and launching the kernels of L layers. B is what the
                      transformers engine lets into a batch: 64 rows, and 2^18 tokens, prompts with
                      answers. A model whose rows cannot be padded fills it only with questions of
                      equal length: that they are is assumed.
    disk              what stays: checkpoints in bf16 (the tiny profile's are float32, twice that),
                      answers at 4 bytes a token. Shards that `restore` hardlinks are counted as if
                      it copied them. A training's saves are gone when it is done: they are counted
                      apart. Prepared data of the hub are a guess of 10^9 tokens a source.

Utilisations and the time of a launch are assumed, not measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil

from amnesia_bench.costs.estimate import estimate_training
from amnesia_bench.costs.gpus import Gpu
from amnesia_bench.costs.model_shape import ModelShape, named_shape
from amnesia_bench.costs.work import Answering, Training, Weights, Work
from amnesia_bench.inference.protocol import MAX_BATCH_ROWS, EngineOptions

READING_UTILISATION = 0.35  # of the peak
BANDWIDTH_UTILISATION = 0.6
# 16 rows of a model of 28 layers then come to 570 tokens/s: eager kernels, no CUDA graphs.
LAUNCH_SECONDS_PER_LAYER = 1e-3
_BATCH_TOKENS = EngineOptions().max_batch_tokens
_BYTES_PER_ANSWER_TOKEN = 4


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stage takes, or several.

    Attributes:
        trained_tokens, read_tokens, new_tokens: of trainings, of prompts, of answers.
        flops: of the model.
        gpu_hours: 0 for a stage of the CPU.
        disk_bytes: what stays.
        transient_bytes: what a training needs besides while it runs; of several the largest.
    """

    trained_tokens: int = 0
    read_tokens: int = 0
    new_tokens: int = 0
    flops: float = 0.0
    gpu_hours: float = 0.0
    disk_bytes: float = 0.0
    transient_bytes: float = 0.0

    @property
    def tokens(self) -> int:
        """All tokens, whatever was done to them."""
        return self.trained_tokens + self.read_tokens + self.new_tokens


def cost_of(work: Work, gpus: int, gpu: Gpu) -> Cost:
    """Return what a stage's work takes on a number of GPUs of a kind; 0: on the CPU."""
    cost = _cost(work, max(1, gpus), gpu)
    return cost if gpus else replace(cost, gpu_hours=0.0)


def total(costs: Iterable[Cost]) -> Cost:
    """Return what several stages take together."""
    known = tuple(costs)
    return Cost(
        trained_tokens=sum(cost.trained_tokens for cost in known),
        read_tokens=sum(cost.read_tokens for cost in known),
        new_tokens=sum(cost.new_tokens for cost in known),
        flops=sum(cost.flops for cost in known),
        gpu_hours=sum(cost.gpu_hours for cost in known),
        disk_bytes=sum(cost.disk_bytes for cost in known),
        transient_bytes=max((cost.transient_bytes for cost in known), default=0.0),
    )


def _cost(work: Work, gpus: int, gpu: Gpu) -> Cost:
    if isinstance(work, Training):
        return _training(work, gpus, gpu)
    if isinstance(work, Answering):
        return _answering(work, named_shape(work.shape), gpu)
    if isinstance(work, Weights):
        return Cost(disk_bytes=2.0 * named_shape(work.shape).parameters)
    return Cost(disk_bytes=work.bytes)


def _training(work: Training, gpus: int, gpu: Gpu) -> Cost:
    found = estimate_training(work.run, named_shape(work.shape), gpus, gpu)
    return Cost(
        trained_tokens=found.tokens,
        flops=found.tokens * found.flops_per_token,
        gpu_hours=found.gpu_hours,
        disk_bytes=found.export_bytes,
        transient_bytes=work.run.train.checkpoints.keep * found.save_bytes,
    )


def _answering(work: Answering, shape: ModelShape, gpu: Gpu) -> Cost:
    read = new = 0
    flops = seconds = 0.0
    for tokens, count in work.prompts:
        reading = tokens * (2 * shape.body + shape.mixing_flops(tokens)) + 2 * shape.embedding
        middle = tokens + work.new_tokens // 2
        answer = 2 * (shape.body + shape.embedding) + shape.mixing_flops_at(middle)
        read += count * tokens
        new += count * work.new_tokens
        flops += count * (reading + work.new_tokens * answer)
        seconds += count * reading / gpu.flops_per_second / READING_UTILISATION
        rows = min(count, MAX_BATCH_ROWS, max(1, _BATCH_TOKENS // (tokens + work.new_tokens)))
        seconds += ceil(count / rows) * work.new_tokens * _step_seconds(shape, rows, middle, gpu)
    return Cost(
        read_tokens=read,
        new_tokens=new,
        flops=flops,
        gpu_hours=seconds / 3600,
        disk_bytes=float(_BYTES_PER_ANSWER_TOKEN * new),
    )


def _step_seconds(shape: ModelShape, rows: int, tokens: int, gpu: Gpu) -> float:
    """Return how long one step takes in which each row, of so many tokens, gets one more."""
    weights = 2 * (shape.body + shape.embedding)
    states = shape.cache_bytes(0)  # read with the cache, then written
    moved = weights + rows * (shape.cache_bytes(tokens) + states)
    memory = moved / gpu.bytes_per_second / BANDWIDTH_UTILISATION
    return max(memory, shape.layers * LAUNCH_SECONDS_PER_LAYER)
