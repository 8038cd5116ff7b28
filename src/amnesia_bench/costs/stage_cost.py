"""Estimate the cost of a stage before it runs: tokens, FLOPs, GPU-hours, disk.

The estimate is arithmetic on shapes and needs no torch. Shapes: N parameters without embeddings and
with the head, L layers, n tokens per prompt, at most m tokens per answer, B rows per batch.

    training          The tokens are steps x sequences x tokens per sequence; see `costs.estimate`.
                      FLOPs are model FLOPs; hours include the recomputation of activation
                      checkpointing.
    prefill           A prompt needs n x (2 N without the head + attention over n tokens) FLOPs,
                      plus the head once. Every prompt is counted completely. In fact the engine
                      prefills shared prefixes only once, which saves 35 to 50 % for NIAH, and also
                      repeats of a question.
    decode            Every answer is assumed to have the maximum of m tokens. Each token needs 2 N
                      FLOPs plus attention over the context. The time of a decode step is the
                      longer of two times: reading all weights and B caches from GPU memory
                      (recurrent states are also written back), and launching the kernels of L
                      layers. B is the batch size of the transformers engine: at most 64 rows and
                      2^18 tokens, counting prompts and answers. A model that does not support
                      padding can only batch questions of equal length; the estimate assumes that
                      all lengths are equal.
    disk              Only artifacts that remain are counted: checkpoints in bf16 (those of the tiny
                      profile are float32, so twice as large), answers at 4 bytes per token. Shards
                      that `restore` hard-links count like copies. Training checkpoints are deleted
                      at the end of a run, so they are counted separately. Prepared data from the
                      hub are assumed to have 10^9 tokens per source.

Utilisations and the launch time are assumed, not measured.
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

PREFILL_UTILISATION = 0.35  # of the peak FLOPs
BANDWIDTH_UTILISATION = 0.6
# Assumes eager kernels and no CUDA graphs: then a batch of 16 rows decodes 570 tokens/s with a
# model of 28 layers.
LAUNCH_SECONDS_PER_LAYER = 1e-3
_BATCH_TOKENS = EngineOptions().max_batch_tokens
_BYTES_PER_ANSWER_TOKEN = 4


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The estimated cost of one stage, or of several.

    Attributes:
        trained_tokens, read_tokens, new_tokens: the number of tokens in training, in prompts and in
            answers.
        flops: model FLOPs.
        gpu_hours: GPU-hours; 0 for a stage on the CPU.
        disk_bytes: the size of the results on disk.
        transient_bytes: the additional disk space during training; for several stages, the maximum.
        gpu_memory_bytes: the peak memory of training on each GPU; for several stages, the maximum.
    """

    trained_tokens: int = 0
    read_tokens: int = 0
    new_tokens: int = 0
    flops: float = 0.0
    gpu_hours: float = 0.0
    disk_bytes: float = 0.0
    transient_bytes: float = 0.0
    gpu_memory_bytes: float = 0.0

    @property
    def tokens(self) -> int:
        """The total number of tokens in training, prompts and answers."""
        return self.trained_tokens + self.read_tokens + self.new_tokens


def cost_of(work: Work, gpus: int, gpu: Gpu) -> Cost:
    """Estimate the cost of a stage on `gpus` GPUs of the kind `gpu`; 0 means a stage on the CPU."""
    cost = _cost(work, max(1, gpus), gpu)
    return cost if gpus else replace(cost, gpu_hours=0.0, gpu_memory_bytes=0.0)


def total(costs: Iterable[Cost]) -> Cost:
    """Return the sum of the costs of several stages, but the maximum of temporary memory and disk."""
    stage_costs = tuple(costs)
    return Cost(
        trained_tokens=sum(cost.trained_tokens for cost in stage_costs),
        read_tokens=sum(cost.read_tokens for cost in stage_costs),
        new_tokens=sum(cost.new_tokens for cost in stage_costs),
        flops=sum(cost.flops for cost in stage_costs),
        gpu_hours=sum(cost.gpu_hours for cost in stage_costs),
        disk_bytes=sum(cost.disk_bytes for cost in stage_costs),
        transient_bytes=max((cost.transient_bytes for cost in stage_costs), default=0.0),
        gpu_memory_bytes=max((cost.gpu_memory_bytes for cost in stage_costs), default=0.0),
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
    estimate = estimate_training(work.run, named_shape(work.shape), gpus, gpu)
    return Cost(
        trained_tokens=estimate.tokens,
        flops=estimate.tokens * estimate.flops_per_token,
        gpu_hours=estimate.gpu_hours,
        disk_bytes=estimate.export_bytes,
        transient_bytes=work.run.train.checkpoints.keep * estimate.save_bytes,
        gpu_memory_bytes=estimate.memory.total,
    )


def _answering(work: Answering, shape: ModelShape, gpu: Gpu) -> Cost:
    prompt_tokens = new_tokens = 0
    flops = seconds = 0.0
    for tokens, count in work.prompts:
        prefill = tokens * (2 * shape.body + shape.mixing_flops(tokens)) + 2 * shape.embedding
        mean_context = tokens + work.new_tokens // 2
        decode = 2 * (shape.body + shape.embedding) + shape.mixing_flops_at(mean_context)
        prompt_tokens += count * tokens
        new_tokens += count * work.new_tokens
        flops += count * (prefill + work.new_tokens * decode)
        seconds += count * prefill / gpu.flops_per_second / PREFILL_UTILISATION
        rows = min(count, MAX_BATCH_ROWS, max(1, _BATCH_TOKENS // (tokens + work.new_tokens)))
        seconds += (
            ceil(count / rows) * work.new_tokens * _step_seconds(shape, rows, mean_context, gpu)
        )
    return Cost(
        read_tokens=prompt_tokens,
        new_tokens=new_tokens,
        flops=flops,
        gpu_hours=seconds / 3600,
        disk_bytes=float(_BYTES_PER_ANSWER_TOKEN * new_tokens),
    )


def _step_seconds(shape: ModelShape, rows: int, tokens: int, gpu: Gpu) -> float:
    """Return the seconds of a decode step, which adds one token to each row of `tokens` tokens."""
    weights = 2 * (shape.body + shape.embedding)
    states = shape.cache_bytes(0)  # read with the cache, then written
    bytes_moved = weights + rows * (shape.cache_bytes(tokens) + states)
    memory = bytes_moved / gpu.bytes_per_second / BANDWIDTH_UTILISATION
    return max(memory, shape.layers * LAUNCH_SECONDS_PER_LAYER)
