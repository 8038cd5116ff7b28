"""Estimate how long an engine decodes: rows, steps, and the time of a step.

Every step adds one token to each row of the batch. Shapes: B rows, n tokens per prompt, at most m
tokens per answer, of which k on average.

    rows              As many as fit into the memory of the GPU, at most the engine's limit. The
                      transformers engine reserves n + m tokens per row, by the rule that it uses
                      itself (`inference.batch_rows`). vLLM's pages hold what a row has so far, at
                      most n + m/2 on average.
    steps             Finished rows are replaced, so B rows need (answers / B) k steps, with the
                      number of answers per row rounded up. At the end, rows stay empty until the
                      longest answer is finished: m - k steps more. vLLM gets its requests in
                      windows, so it has such an end in each of them, but it replaces rows at once.
                      The transformers engine waits until the finished rows have cost R =
                      REFILL_STEPS steps, and a refill takes R steps again. If answers end at
                      random, that happens every sqrt(2 R k) steps, so the share sqrt(2 R / k) is
                      added.
    step              The longest of three times. Memory: all weights, B caches of the mean context
                      (recurrent states are also written back) and the passes of the sampler over
                      the logits, at BANDWIDTH_UTILISATION of the bandwidth. Compute: the FLOPs of B
                      tokens at DECODE_UTILISATION of the peak. Launch: the engine's own time.
    mean context      n + m/2. The mean over all steps of the tokens that a row has generated is
                      E[k^2] / 2 E[k], which no distribution of lengths up to m makes larger than
                      m/2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil, sqrt

from amnesia_bench.costs.gpus import Gpu
from amnesia_bench.costs.model_shape import ModelShape
from amnesia_bench.inference.batch_rows import (
    MAX_ROWS,
    PREFILL_CHUNK_TOKENS,
    REFILL_STEPS,
    row_bytes,
    rows_that_fit,
)
from amnesia_bench.records.ids import EngineName

BANDWIDTH_UTILISATION = 0.6
DECODE_UTILISATION = 0.35
# Part of a GPU's memory that vLLM uses, and what it needs besides weights and caches: activations,
# logits, CUDA graphs.
_USABLE_MEMORY, _RESERVED_BYTES = 0.9, 4e9
# The sampler casts the logits to float32, divides, looks for the largest, sums and sorts the 512
# largest: about as much as 8 passes over B x vocabulary values of 4 bytes.
_LOGIT_BYTES = 8 * 4


class Bound(StrEnum):
    """What decides the time of a computation."""

    LAUNCH = "launch"
    MEMORY = "memory"
    COMPUTE = "compute"


@dataclass(frozen=True, kw_only=True)
class DecodingEngine:
    """The properties of an engine that decide how long it decodes.

    Attributes:
        max_rows: the largest number of rows of a batch.
        layer_seconds: the time to launch the kernels of one layer.
        step_seconds: the time of a step besides kernels: scheduling, and replaying CUDA graphs.
        chunk_tokens: shared prefixes end at multiples of this number of tokens.
        window: the number of requests that the engine gets at once; None for all.
        paged: whether a row reserves memory only for the tokens that it has.
        refill_steps: the steps that a refill costs, once by waiting and once by copying.
    """

    max_rows: int
    layer_seconds: float
    step_seconds: float
    chunk_tokens: int
    window: int | None
    paged: bool
    refill_steps: float


# All of this is assumed, not measured. An eager layer launches about 30 kernels at 30 microseconds
# each; vLLM replays a CUDA graph, and schedules a step in about 3 ms. 512 tokens are the blocks of
# the hybrids in vLLM (5B and 9B; 256 for 2B).
DECODING: Mapping[EngineName, DecodingEngine] = {
    "transformers": DecodingEngine(
        max_rows=MAX_ROWS["cuda"],
        layer_seconds=1e-3,
        step_seconds=0.0,
        chunk_tokens=PREFILL_CHUNK_TOKENS["cuda"],
        window=None,
        paged=False,
        refill_steps=REFILL_STEPS,
    ),
    "vllm": DecodingEngine(
        max_rows=256,
        layer_seconds=0.0,
        step_seconds=3e-3,
        chunk_tokens=512,
        window=1024,
        paged=True,
        refill_steps=0.0,
    ),
}


def engine_on_cpu(engine: DecodingEngine) -> DecodingEngine:
    """Return the properties of the transformers engine on a CPU, which launches no kernels."""
    return replace(
        engine,
        max_rows=MAX_ROWS["cpu"],
        layer_seconds=0.0,
        chunk_tokens=PREFILL_CHUNK_TOKENS["cpu"],
    )


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """The decoding of several answers on one GPU; `bound` decides the time of a step."""

    rows: int
    steps: int
    step_seconds: float
    bound: Bound

    @property
    def seconds(self) -> float:
        return self.steps * self.step_seconds


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers to prompts of one length: `count` answers of `mean` tokens, at most `limit`."""

    count: int
    prompt_tokens: int
    limit: int
    mean: int

    @property
    def mean_context(self) -> int:
        """The largest possible mean context of a decode step."""
        return self.prompt_tokens + self.limit // 2


def decoding_of(shape: ModelShape, answers: Answers, engine: DecodingEngine, gpu: Gpu) -> Decoding:
    """Return the decoding of answers by one GPU."""
    rows = min(answers.count, _rows(shape, answers, engine, gpu))
    rounds = ceil(answers.count / rows)
    steps = rounds * answers.mean
    if answers.mean < answers.limit:  # otherwise all rows of a batch end at the same time
        windows = ceil(answers.count / (engine.window or answers.count))
        steps += windows * (answers.limit - answers.mean)
        if rounds > 1:
            steps += ceil(steps * sqrt(2 * engine.refill_steps / answers.mean))
    seconds, bound = _step(shape, rows, answers.mean_context, engine, gpu)
    return Decoding(rows=rows, steps=steps, step_seconds=seconds, bound=bound)


def _rows(shape: ModelShape, answers: Answers, engine: DecodingEngine, gpu: Gpu) -> int:
    free = gpu.memory_bytes - 2 * shape.parameters
    if not engine.paged:
        cache = shape.cache_bytes(answers.prompt_tokens + answers.limit)
        return rows_that_fit(free, row_bytes(cache, shape.vocab), engine.max_rows)
    free -= (1 - _USABLE_MEMORY) * gpu.memory_bytes + _RESERVED_BYTES
    return max(1, min(engine.max_rows, int(free // shape.cache_bytes(answers.mean_context))))


def _step(
    shape: ModelShape, rows: int, context: int, engine: DecodingEngine, gpu: Gpu
) -> tuple[float, Bound]:
    weights = shape.body + shape.embedding
    states = shape.cache_bytes(0)  # read with the cache, then written
    per_row = shape.cache_bytes(context) + states + _LOGIT_BYTES * shape.vocab
    flops = rows * (2 * weights + shape.mixing_flops_at(context))
    seconds = {
        Bound.LAUNCH: engine.step_seconds + shape.layers * engine.layer_seconds,
        Bound.MEMORY: (2 * weights + rows * per_row) / gpu.bytes_per_second / BANDWIDTH_UTILISATION,
        Bound.COMPUTE: flops / gpu.flops_per_second / DECODE_UTILISATION,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    return seconds[bound], bound
