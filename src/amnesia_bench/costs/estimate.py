"""Estimate a training run before it starts: memory per GPU, tokens, FLOPs, GPU-hours, disk.

The estimate is arithmetic on shapes and needs no torch. Shapes: N parameters, L layers, M hidden
size, T tokens in a micro-batch of one process, W processes.

    FLOPs per token   Forward: 2 N plus attention; backward: 4 N plus the backward kernels of
                      attention (2.5 x flash attention; the chunked kernels of lightning attention),
                      where N excludes the embeddings and includes the head. Frozen weights need no
                      gradient. Distillation adds the teacher's forward pass. Alignment needs that
                      pass without the head, and the mixers, whose inputs need no gradient.
                      Activation checkpointing repeats the forward pass of each layer up to its last
                      product (`selective`: three products per layer), which takes time but does not
                      count as model FLOPs. Where documents are isolated, attention is that of
                      sequences of DOCUMENTS_PER_SEQUENCE equal documents; longer documents need
                      more: one per sequence about 10 % for SFT.
    state             for trained parameters the weight, gradient and two moments, for frozen ones
                      only the weight; in the master dtype, divided by the processes of a node,
                      since each node has a copy
    gathered          two layers and the embeddings (and head), with gradients, in compute dtype
    activations       the input of each layer with full activation checkpointing, or all
                      activations of each layer without it (of a compiled layer somewhat less);
                      selective keeps the input, the output of attention, q, v, the output of the
                      mixer and half of the MLP's hidden values; for a JetBlock also its generated
                      convolution kernels
                      Alignment: or, if larger, weights and gradients of all mixers, which FSDP2
                      keeps until the end of the backward pass, since their inputs need no gradient
    working           activations of one layer and their gradients, and two states of lightning
                      attention per 64 tokens
    loss              logits of one chunk of rows, in float32 and compute dtype, and the float32
                      gradient of the head; a KL loss needs six tensors of the size of the logits in
                      float32. The loss is computed before the backward pass of the layers, so
                      only the larger one of `loss` and `working` is part of the peak
    reserve           communication buffers, allocator fragmentation, autotuning

`amnesia train dry-run` runs the step and counts. Tests compare both: FLOPs agree within 3 %, and
the memory here, without the reserve, is an upper bound of the dry run's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from amnesia_bench.config.assumptions import DOCUMENTS_PER_SEQUENCE, processes_per_node
from amnesia_bench.config.train_schema import Dtype, TrainingRun
from amnesia_bench.costs.gpus import GPUS, Gpu
from amnesia_bench.costs.mixer_shapes import JetMixerShape, LightningMixerShape
from amnesia_bench.costs.model_shape import ModelShape, named_shape, read_model_shape
from amnesia_bench.errors import UserError
from amnesia_bench.requests.training import EstimateRequest
from amnesia_bench.weights.checkpoint import open_checkpoint

_BYTES: dict[Dtype, int] = {"fp32": 4, "bf16": 2}
_STATE_CHUNK_TOKENS = 64
_RESERVE_BYTES = 4e9


# Hardware FLOPs utilisation by objective, counting recomputed FLOPs; assumed, not measured. 0.35 is
# an MFU of 32 %, 0.57 to 0.67 of the bounds in docs/benchmarks.md; torchtitan reports 33 to 39 %
# for an 8B model on H100s. Stages 1 and 2 have 2,048 and 6,144 tokens per GPU and step, so FSDP's
# communication weighs more: 0.25 is an MFU of 23 % in stage 2, 0.41 to 0.52 of its bounds.
_UTILISATION = {"align": 0.25, "distill": 0.25, "next_token": 0.35}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The peak memory of a training step on each GPU, in bytes; the parts are defined above."""

    state: float
    teacher: float
    gathered: float
    activations: float
    working: float
    loss: float
    reserve: float

    @property
    def total(self) -> float:
        parts = (self.state, self.teacher, self.gathered, self.activations)
        return sum(parts) + max(self.working, self.loss) + self.reserve


@dataclass(frozen=True, kw_only=True)
class TrainingEstimate:
    """The estimated cost of a training run.

    `flops_per_token` counts model FLOPs; `hardware_flops_per_token` also counts recomputation.
    `save_bytes` is the size of one training checkpoint, `export_bytes` the size of the published
    checkpoint.
    """

    parameters: int
    trained_parameters: int
    tokens_per_step: int
    tokens: int
    flops_per_token: float
    hardware_flops_per_token: float
    gpu_hours: float
    utilisation: float
    memory: Memory
    save_bytes: float
    export_bytes: float


def estimate(request: EstimateRequest) -> TrainingEstimate:
    """Estimate the requested training run; the caller compares its memory with that of the GPU.

    Raises:
        UserError: the shape of the model is unknown, or the global batch is not divisible by
            processes x micro-batch.
    """
    train = request.run.train
    if request.init is not None:
        shape = read_model_shape(open_checkpoint(request.init).config)
    elif train.model is not None:
        shape = named_shape(train.model)
    else:
        raise UserError(
            f"{train.name} names no model: --init is missing",
            hint="Give the folder of the checkpoint that training starts from.",
        )
    return estimate_training(request.run, shape, request.processes, GPUS[request.gpu])


def estimate_training(
    run: TrainingRun, shape: ModelShape, processes: int, gpu: Gpu
) -> TrainingEstimate:
    """Estimate the training of a model of this shape on `processes` GPUs of the kind `gpu`.

    Raises:
        UserError: the global batch is not divisible by processes x micro-batch.
    """
    train = run.train
    if train.global_batch % (train.micro_batch * processes):
        raise UserError(
            f"a global batch of {train.global_batch} sequences cannot be divided among {processes} "
            f"processes with micro-batches of {train.micro_batch}",
            hint="Use another number of processes, or change train.micro_batch.",
        )
    trained = _trained(run, shape)
    model_flops, recomputed = _flops(run, shape)
    step_tokens = train.global_batch * train.sequence_tokens
    tokens = step_tokens * train.steps
    utilisation = _UTILISATION[train.objective]
    seconds = tokens * (model_flops + recomputed) / gpu.flops_per_second
    return TrainingEstimate(
        parameters=shape.parameters,
        trained_parameters=trained,
        tokens_per_step=step_tokens,
        tokens=tokens,
        flops_per_token=model_flops,
        hardware_flops_per_token=model_flops + recomputed,
        gpu_hours=seconds / utilisation / 3600,
        utilisation=utilisation,
        memory=_memory(run, shape, trained, processes),
        save_bytes=3.0 * _BYTES[run.recipe.master_dtype] * trained,
        export_bytes=2.0 * shape.parameters,
    )


def teacher_of(shape: ModelShape) -> ModelShape:
    """Return the shape of the softmax model from which a HypeNet of this shape is converted."""
    # The teacher's head may be untied although the student's is tied (9B), so it counts as untied,
    # which is the larger case.
    return replace(
        shape,
        tied=False,
        softmax=replace(shape.softmax, gated=False),
        softmax_layers=shape.layers,
        linear=None,
        linear_layers=0,
    )


def _aligned_layers(run: TrainingRun, shape: ModelShape) -> int:
    chosen = run.train.align_layers
    return shape.layers if chosen == "all" else len(chosen)


def _linear(shape: ModelShape) -> LightningMixerShape | JetMixerShape:
    if shape.linear is None:
        raise UserError(
            "alignment trains linear mixers, and this architecture has none",
            hint="`amnesia convert` turns a Qwen3 model into a HypeNet.",
        )
    return shape.linear


def _trained(run: TrainingRun, shape: ModelShape) -> int:
    if run.train.objective == "align":
        return _aligned_layers(run, shape) * _linear(shape).parameters
    frozen = 0
    if (rule := run.train.freeze) is not None:
        layers = shape.softmax_layers if rule.layers == "all" else len(rule.layers)
        softmax = shape.softmax
        heads = {"q": softmax.heads, "k": softmax.kv_heads, "v": softmax.kv_heads}
        rows = sum(heads.get(role, 0) for role in rule.roles) * softmax.head_dim
        frozen = layers * shape.hidden * rows
    return shape.parameters - frozen


def _document_tokens(run: TrainingRun) -> int:
    tokens = run.train.sequence_tokens
    return tokens // DOCUMENTS_PER_SEQUENCE if run.isolate_documents else tokens


def _mixing(shape: ModelShape, tokens: int) -> tuple[float, float]:
    """Return the FLOPs per token of all mixers without their weights: forward and backward."""
    softmax = shape.softmax_flops(tokens)
    linear = (0.0, 0.0) if shape.linear is None else shape.linear.kernel_flops
    forward, backward = (shape.linear_layers * flops for flops in linear)
    # The backward pass of flash attention has five products, since it computes the logits again.
    return softmax + forward, 2.5 * softmax + backward


def _flops(run: TrainingRun, shape: ModelShape) -> tuple[float, float]:
    """Return the FLOPs without recomputation, and the recomputed FLOPs, both per token."""
    tokens = _document_tokens(run)
    teacher = teacher_of(shape)
    teacher_forward = 2 * teacher.body + _mixing(teacher, tokens)[0]
    if run.train.objective == "align":
        linear = _linear(shape)
        # The inputs of a mixer get no gradient, so only the output projection passes one back.
        products = 4 * linear.parameters + 2 * linear.width * shape.hidden
        mixers = _aligned_layers(run, shape) * (products + sum(linear.kernel_flops))
        return teacher_forward + mixers, 0.0
    forward, backward = _mixing(shape, tokens)
    frozen = shape.parameters - _trained(run, shape)
    flops = 6 * (shape.body + shape.embedding) - 2 * frozen + forward + backward
    if run.train.objective == "distill":
        flops += teacher_forward + 2 * teacher.embedding
    # Recomputation of a layer ends before its last product, whose output is not needed.
    full = 2 * shape.body + forward - 2 * shape.layers * shape.hidden * shape.mlp
    narrow = shape.softmax.kv_heads * shape.softmax.head_dim
    # The products that `training.blocks` does not keep: W_K, one as wide as all heads, and one of
    # the MLP.
    selective = 2 * shape.layers * shape.hidden * (narrow + shape.widest + shape.mlp)
    recomputed = {"none": 0.0, "selective": float(selective), "full": full}
    return flops, recomputed[run.train.activation_checkpointing]


def _memory(run: TrainingRun, shape: ModelShape, trained: int, processes: int) -> Memory:
    train = run.train
    master, compute = _BYTES[run.recipe.master_dtype], _BYTES[train.compute_dtype]
    tokens = train.micro_batch * train.sequence_tokens
    shards = processes_per_node(processes)  # every node has a complete copy
    align, distill = train.objective == "align", train.objective == "distill"
    loaded = trained if align else shape.parameters
    teacher = teacher_of(shape).parameters if align or distill else 0
    heads = (1 if shape.tied else 2) * shape.embedding
    block = _linear(shape).parameters if align else shape.largest_block
    gathered = 2.0 * compute * (2 * block + (0 if align else heads))
    if teacher:
        gathered += compute * (2 * teacher_of(shape).largest_block + 2 * shape.embedding)
    width = shape.widest
    layer_activations = _layer_activations(shape, compute, align)
    generated = shape.linear.generated if isinstance(shape.linear, JetMixerShape) else 0
    layer_activations += 2 * compute * generated
    kept = {
        "none": layer_activations,
        "selective": compute * (2 * shape.hidden + 3 * width + shape.mlp + generated),
        "full": compute * shape.hidden,
    }
    states = 0.0
    if shape.linear is not None and (shape.linear_layers or align):
        states = 2.0 * compute * shape.linear.state * tokens / _STATE_CHUNK_TOKENS
    backward = 4 * 4 * width + 2 * compute * shape.mlp
    activations = float(shape.layers * tokens * kept[train.activation_checkpointing])
    if align:
        activations = max(activations, 2.0 * compute * trained)
    rows = min(train.loss_chunk_rows, tokens)
    # The KL keeps six float32 tensors of the size of the logits at once.
    logits = rows * shape.vocab * (6 * 4 if distill else 4 + 2 * compute)
    return Memory(
        state=(4.0 * master * trained + master * (loaded - trained)) / shards,
        teacher=compute * teacher / shards,
        gathered=gathered,
        activations=activations,
        working=tokens * (layer_activations + backward) + states,
        loss=0.0 if align else logits + 4.0 * shape.embedding,
        reserve=_RESERVE_BYTES,
    )


def _layer_activations(shape: ModelShape, compute: int, align: bool) -> float:
    """Return the bytes per token that a layer without checkpointing keeps for its backward pass."""
    # A norm keeps its input in float32 and its output before the weight; queries, keys and the
    # output of a linear mixer have one too.
    norm = 4 + compute
    mixer = 3 * norm * shape.widest + 6 * compute * shape.widest
    if align:  # the teacher records no graph, and a mixer has no MLP; the loss keeps the difference
        return float(mixer + (2 * compute + 4) * shape.hidden)
    return float(mixer + 2 * (norm + compute) * shape.hidden + 4 * compute * shape.mlp)
