"""Estimate the cost of a stage before it runs: tokens, FLOPs, GPU-hours, disk.

The estimate is arithmetic on shapes and needs no torch.

    training          The tokens are steps x sequences x tokens per sequence; see `costs.estimate`.
                      FLOPs are model FLOPs; hours include the recomputation of activation
                      checkpointing.
    prefill           FLOPs / (peak x PREFILL_UTILISATION), where shared prefixes and repeated
                      questions are computed once; see `costs.prefill`.
    decode            Steps x time of a step; see `costs.decoding`. Answers have their expected mean
                      length (`costs.answer_lengths`); `work.at_most` gives the work with the
                      maximum length of all answers, whose cost is an upper bound.
    probing           A forward pass has the FLOPs of a prefill. A backward pass needs twice as
                      many, and a second forward pass, because activations are not stored. The probe
                      computes the logits of softmax layers again, for gradients also the products
                      with the values. They are float32: FLOPs / (peak x PROBE_UTILISATION).
    disk              Only artifacts that remain are counted: checkpoints in bf16 (those of the tiny
                      profile are float32, so twice as large), answers at 4 bytes per token. Shards
                      that `restore` hard-links count like copies. Training checkpoints are deleted
                      at the end of a run, so they are counted separately. Prepared data from the
                      hub are assumed to have 10^9 tokens per source, unless the config says.

Several GPUs of an evaluation divide its prompts equally. Utilisations and launch times are assumed;
`pipeline.corrections` corrects the hours by those of finished stages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil

from amnesia_bench.costs.decoding import (
    DECODING,
    Answers,
    Bound,
    DecodingEngine,
    decoding_of,
    engine_on_cpu,
)
from amnesia_bench.costs.estimate import estimate_training
from amnesia_bench.costs.gpus import CPU_CORE, CPU_TRAINING_SLOWDOWN, Gpu
from amnesia_bench.costs.model_shape import named_shape
from amnesia_bench.costs.prefill import prefill_of
from amnesia_bench.costs.work import Answering, Combined, Probing, Training, Weights, Work

PREFILL_UTILISATION = 0.35  # of the peak FLOPs
# Of the peak bf16 FLOPs of a GPU: exact float32 products, one text at a time. A CPU, whose rate is
# that of float32 and of single prompts, loses nothing.
PROBE_UTILISATION = 0.03
_BYTES_PER_ANSWER_TOKEN = 4
_BYTES_OF_RECORDS = 1e6  # of an analysis


@dataclass(frozen=True, kw_only=True)
class CostTerm:
    """One term of the estimated GPU-hours of a stage.

    Attributes:
        part: training, prefill or decode; of evaluations with the length of the prompts.
        tokens: trained tokens, tokens in prompts, or tokens in answers.
        computed_tokens: those tokens without shared prefixes and repeated questions.
        flops: model FLOPs.
        bound: what decides the time.
        utilisation: the assumed share of the peak FLOPs; None for decoding.
        gpu_hours: GPU-hours of this term.
        rows, steps, step_seconds: of decoding on each GPU: rows of a batch, number of steps, and
            seconds per step; 0 for other terms.
    """

    part: str
    tokens: int
    computed_tokens: float
    flops: float
    bound: Bound
    utilisation: float | None
    gpu_hours: float
    rows: int = 0
    steps: int = 0
    step_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The estimated cost of one stage, or of several.

    Attributes:
        trained_tokens, read_tokens, new_tokens: the number of tokens in training, in prompts and in
            answers.
        prefilled_tokens: the tokens in prompts that are computed; shared prefixes count once.
        flops: model FLOPs.
        gpu_hours: GPU-hours; 0 for a stage on the CPU.
        core_hours: hours of one CPU core; 0 for a stage on GPUs, or one that computes little.
        disk_bytes: the size of the results on disk.
        transient_bytes: the additional disk space during training; for several stages, the maximum.
        gpu_memory_bytes: the peak memory of training on each GPU; for several stages, the maximum.
    """

    trained_tokens: int = 0
    read_tokens: int = 0
    prefilled_tokens: int = 0
    new_tokens: int = 0
    flops: float = 0.0
    gpu_hours: float = 0.0
    core_hours: float = 0.0
    disk_bytes: float = 0.0
    transient_bytes: float = 0.0
    gpu_memory_bytes: float = 0.0

    @property
    def tokens(self) -> int:
        """The total number of tokens in training, prompts and answers."""
        return self.trained_tokens + self.read_tokens + self.new_tokens


def cost_of(work: Work, gpus: int, gpu: Gpu) -> Cost:
    """Estimate the cost of a stage on `gpus` GPUs of the kind `gpu`; 0 means a stage on the CPU."""
    if gpus:
        return _cost(work, gpus, gpu)
    cost = _cost(work, 1, CPU_CORE)
    slowdown = CPU_TRAINING_SLOWDOWN if isinstance(work, Training) else 1.0
    hours = slowdown * cost.gpu_hours
    return replace(cost, gpu_hours=0.0, core_hours=hours, gpu_memory_bytes=0.0)


def terms_of(work: Work, gpus: int, gpu: Gpu) -> tuple[CostTerm, ...]:
    """Return the terms of a stage's GPU-hours on `gpus` GPUs; none for a stage on the CPU."""
    if not gpus:
        return ()
    if isinstance(work, Training):
        return (_training_term(work, gpus, gpu),)
    if isinstance(work, Probing):
        return (_probing_term(work, gpu),)
    if isinstance(work, Combined):
        return tuple(term for part in work.parts for term in _answering_terms(part, gpus, gpu))
    return _answering_terms(work, gpus, gpu) if isinstance(work, Answering) else ()


def total(costs: Iterable[Cost]) -> Cost:
    """Return the sum of the costs of several stages, but the maxima of memory and of saves."""
    stage_costs = tuple(costs)
    return Cost(
        trained_tokens=sum(cost.trained_tokens for cost in stage_costs),
        read_tokens=sum(cost.read_tokens for cost in stage_costs),
        prefilled_tokens=sum(cost.prefilled_tokens for cost in stage_costs),
        new_tokens=sum(cost.new_tokens for cost in stage_costs),
        flops=sum(cost.flops for cost in stage_costs),
        gpu_hours=sum(cost.gpu_hours for cost in stage_costs),
        core_hours=sum(cost.core_hours for cost in stage_costs),
        disk_bytes=sum(cost.disk_bytes for cost in stage_costs),
        transient_bytes=max((cost.transient_bytes for cost in stage_costs), default=0.0),
        gpu_memory_bytes=max((cost.gpu_memory_bytes for cost in stage_costs), default=0.0),
    )


def _cost(work: Work, gpus: int, gpu: Gpu) -> Cost:
    if isinstance(work, Training):
        return _training(work, gpus, gpu)
    if isinstance(work, Answering):
        return _answering(work, gpus, gpu)
    if isinstance(work, Combined):
        return total(_answering(part, gpus, gpu) for part in work.parts)
    if isinstance(work, Probing):
        term = _probing_term(work, gpu)
        return Cost(
            read_tokens=term.tokens,
            prefilled_tokens=term.tokens,
            flops=term.flops,
            gpu_hours=term.gpu_hours,
            disk_bytes=_BYTES_OF_RECORDS,
        )
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


def _training_term(work: Training, gpus: int, gpu: Gpu) -> CostTerm:
    estimate = estimate_training(work.run, named_shape(work.shape), gpus, gpu)
    steps = work.run.train.steps
    return CostTerm(
        part="training",
        tokens=estimate.tokens,
        computed_tokens=float(estimate.tokens),
        flops=estimate.tokens * estimate.hardware_flops_per_token,
        bound=Bound.COMPUTE,
        utilisation=estimate.utilisation,
        gpu_hours=estimate.gpu_hours,
        steps=steps,
        step_seconds=3600 * estimate.gpu_hours / gpus / steps,
    )


def _probing_term(work: Probing, gpu: Gpu) -> CostTerm:
    shape = named_shape(work.shape)
    tokens = work.texts * work.tokens
    forward = 2 * (shape.body + shape.embedding) + shape.mixing_flops(work.tokens)
    softmax = shape.softmax_flops(work.tokens)
    # Softmax layers compute logits and weighted sums; the probe repeats the logits, or both.
    flops = tokens * (4 * forward + softmax if work.gradients else forward + softmax / 2)
    utilisation = PREFILL_UTILISATION if gpu is CPU_CORE else PROBE_UTILISATION
    return CostTerm(
        part=f"probing at {work.tokens:,}",
        tokens=tokens,
        computed_tokens=float(tokens),
        flops=flops,
        bound=Bound.COMPUTE,
        utilisation=utilisation,
        gpu_hours=flops / gpu.flops_per_second / utilisation / 3600,
    )


def _answering(work: Answering, gpus: int, gpu: Gpu) -> Cost:
    terms = _answering_terms(work, gpus, gpu)
    prefills = [term for term in terms if term.utilisation is not None]
    new_tokens = sum(term.tokens for term in terms if term.utilisation is None)
    return Cost(
        read_tokens=sum(term.tokens for term in prefills),
        prefilled_tokens=round(sum(term.computed_tokens for term in prefills)),
        new_tokens=new_tokens,
        flops=sum(term.flops for term in terms),
        gpu_hours=sum(term.gpu_hours for term in terms),
        disk_bytes=float(_BYTES_PER_ANSWER_TOKEN * new_tokens),
    )


def _answering_terms(work: Answering, gpus: int, gpu: Gpu) -> tuple[CostTerm, ...]:
    terms: list[CostTerm] = []
    for tokens, count in work.prompts:
        answers = Answers(
            count=ceil(count / gpus),
            prompt_tokens=tokens,
            limit=work.new_tokens,
            mean=work.expected_new_tokens,
        )
        terms += [
            _prefill_term(work, tokens, count, gpus, gpu),
            _decode_term(work, count, answers, gpus, gpu),
        ]
    return tuple(terms)


def _engine(work: Answering, gpu: Gpu) -> DecodingEngine:
    engine = DECODING[work.engine]
    return engine_on_cpu(engine) if gpu is CPU_CORE else engine


def _prefill_term(work: Answering, tokens: int, count: int, gpus: int, gpu: Gpu) -> CostTerm:
    haystack = work.prompts_per_haystack
    prefill = prefill_of(
        named_shape(work.shape),
        tokens,
        ceil(count / work.repeats),
        # Each GPU has its own prefixes.
        None if haystack is None else ceil(haystack / gpus),
        _engine(work, gpu).chunk_tokens,
    )
    return CostTerm(
        part=f"prefill at {tokens:,}",
        tokens=count * tokens,
        computed_tokens=prefill.computed_tokens,
        flops=prefill.flops,
        bound=Bound.COMPUTE,
        utilisation=PREFILL_UTILISATION,
        gpu_hours=prefill.flops / gpu.flops_per_second / PREFILL_UTILISATION / 3600,
    )


def _decode_term(work: Answering, count: int, answers: Answers, gpus: int, gpu: Gpu) -> CostTerm:
    shape = named_shape(work.shape)
    decoding = decoding_of(shape, answers, _engine(work, gpu), gpu)
    new_tokens = count * answers.mean
    flops = 2 * (shape.body + shape.embedding) + shape.mixing_flops_at(answers.mean_context)
    return CostTerm(
        part=f"decode at {answers.prompt_tokens:,}",
        tokens=new_tokens,
        computed_tokens=float(new_tokens),
        flops=new_tokens * flops,
        bound=decoding.bound,
        utilisation=None,
        gpu_hours=gpus * decoding.seconds / 3600,
        rows=decoding.rows,
        steps=decoding.steps,
        step_seconds=decoding.step_seconds,
    )
