"""Load the models of a stage from checkpoint folders, and shard them over the processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import amnesia_bench.modeling  # noqa: F401 - registers HypeNet with transformers' auto classes
from amnesia_bench.config.train_schema import Dtype, TrainingRun
from amnesia_bench.errors import UserError
from amnesia_bench.modeling.mixers import LightningMixer
from amnesia_bench.training.blocks import compile_blocks, recompute_activations
from amnesia_bench.training.freezing import frozen_tensors
from amnesia_bench.training.heads import TRAINABLE
from amnesia_bench.training.loss_check import check_loss
from amnesia_bench.training.objectives import (
    Align,
    Distill,
    NextToken,
    Teacher,
    isolate_without_mask,
)
from amnesia_bench.training.processes import Processes
from amnesia_bench.training.sharding import DTYPES, shard
from amnesia_bench.training.trusted_code import check_trust
from amnesia_bench.weights.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Learner:
    """The module that the loop trains.

    `names` maps the parameter names of `objective` to tensor names in the checkpoint folder. Tied
    parameters have a single entry.
    """

    objective: Align | Distill | NextToken
    names: Mapping[str, str]

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters by their tensor names in the checkpoint folder."""
        parameters = self.objective.named_parameters()
        return {self.names[name]: p for name, p in parameters if p.requires_grad}

    @property
    def untouched(self) -> dict[str, nn.Parameter]:
        """The frozen parameters of the objective by their tensor names in the checkpoint folder."""
        parameters = self.objective.named_parameters()
        return {self.names[name]: p for name, p in parameters if not p.requires_grad}


def build_learner(
    run: TrainingRun, init: Checkpoint, teacher: Checkpoint | None, processes: Processes
) -> Learner:
    """Load and shard the student, and the teacher if the stage has one; return the learner.

    Raises:
        UserError: a checkpoint is not suitable for the stage.
    """
    frozen = frozen_tensors(run.train.freeze, init.config, init.shapes, init.folder)
    trusted = run.train.trusted_code_sha256
    student = load_for_training(init, run.recipe.master_dtype, trusted, processes.first)
    _check_student(student, run, init)
    processes.on_first(lambda: check_loss(student, init.folder))
    teacher_model: Any = None
    if teacher is not None:
        dtype = run.train.compute_dtype
        teacher_model = load_for_training(teacher, dtype, None, processes.first)
        _check_teacher(student, teacher_model, init, teacher)
        processes.on_first(lambda: check_loss(teacher_model, teacher.folder))
    learner = assemble_learner(run, student, teacher_model, frozen, processes)
    if unknown := frozen - set(learner.names.values()):
        raise UserError(f"{init.folder}: {min(unknown)} is not a parameter, so it cannot be frozen")
    return learner


def assemble_learner(
    run: TrainingRun, student: Any, teacher: Any, frozen: frozenset[str], processes: Processes
) -> Learner:
    """Return the learner of loaded models, which are sharded in place.

    Args:
        run: the stage and the recipe of the run.
        student: the model to train, in the master dtype.
        teacher: the model to learn from, in the compute dtype; None for `next_token`.
        frozen: the names of the student's parameters that are not trained.
        processes: the processes over which the models are sharded.
    """
    train = run.train
    student.train()
    if run.recipe.buffers_dtype == "bf16":
        _round_buffers(student)
    frozen_teacher: Teacher | None = None
    if teacher is not None:
        frozen_teacher = Teacher(teacher)
        layers = teacher.base_model.layers
        if train.compile:
            compile_blocks(layers)
        shard(frozen_teacher, layers, processes, train.compute_dtype)
    if train.objective == "align":
        assert frozen_teacher is not None
        return _aligned(run, student, frozen_teacher, processes)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name not in frozen)
    recompute_activations(student.base_model.layers, train.activation_checkpointing)
    if train.compile:
        compile_blocks(student.base_model.layers)
    isolate_without_mask(student)
    objective = (
        NextToken(run, student) if frozen_teacher is None else Distill(run, student, frozen_teacher)
    )
    shard(objective, student.base_model.layers, processes, train.compute_dtype)
    names = {name: name.removeprefix("student.") for name, _ in objective.named_parameters()}
    return Learner(objective=objective, names=names)


def _aligned(run: TrainingRun, student: Any, teacher: Teacher, processes: Processes) -> Learner:
    chosen = run.train.align_layers
    layers = range(student.config.num_hidden_layers) if chosen == "all" else chosen
    objective = Align(student, teacher, layers)
    recompute_activations(objective.mixers.values(), run.train.activation_checkpointing)
    if run.train.compile:
        compile_blocks(objective.mixers.values())
    shard(objective, objective.mixers.values(), processes, run.train.compute_dtype)
    names = {}
    for name, _ in objective.named_parameters():
        _, layer, rest = name.split(".", 2)
        names[name] = f"model.layers.{layer}.self_attn.{rest}"
    return Learner(objective=objective, names=names)


def check_supported(checkpoint: Checkpoint) -> None:
    """Refuse quantised models, and models of transformers that are not a trainable family.

    Raises:
        UserError: training such a model is not supported.
    """
    kind = checkpoint.config.get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"{checkpoint.folder}: model_type in config.json is {kind!r:.80}")
    if kind in CONFIG_MAPPING and kind not in TRAINABLE:
        raise UserError(
            f"{checkpoint.folder}: training models of type {kind} is not supported",
            hint=f"Supported: {', '.join(sorted(TRAINABLE))}.",
        )
    if checkpoint.config.get("quantization_config"):
        raise UserError(
            f"{checkpoint.folder}: config.json has a quantization_config; training quantised "
            "weights is not supported",
            hint="If the weights are not quantised, remove that key from a copy of config.json.",
        )


def load_for_training(
    checkpoint: Checkpoint, dtype: Dtype, trusted_code_sha256: str | None, first: bool
) -> Any:
    """Load a model in the first process, and allocate it without values in all others.

    `shard` later broadcasts the values.

    Raises:
        UserError: transformers cannot build a model from its config, its code is not trusted, or
            its tensors do not match the parameters of the model.
    """
    own_code = checkpoint.config.get("model_type") not in CONFIG_MAPPING
    if own_code:
        check_trust(checkpoint.folder, trusted_code_sha256)
    auto: Any = AutoModelForCausalLM  # its methods are not typed
    options: Any = {"trust_remote_code": own_code, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, **options)
        with torch.device("meta"):
            model = auto.from_config(config, dtype=DTYPES[dtype], trust_remote_code=own_code)
        model.tie_weights()
    except Exception as error:  # any value of config.json may cause any error
        raise UserError(
            f"{checkpoint.folder}: transformers cannot build a model from its config.json "
            f"({error!r:.300})"
        ) from error
    _check_parameters(model, checkpoint)
    if first:
        return auto.from_pretrained(checkpoint.folder, dtype=DTYPES[dtype], **options)
    # The operating system allocates memory when it is first written, so these tensors use none yet.
    model.to_empty(device="cpu")
    model.tie_weights()
    return model


def _check_parameters(model: Any, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint without a tensor of the same name and shape for each parameter.

    Export writes the trained parameters back under these names.
    """
    kind, stored = model.config.model_type, checkpoint.shapes
    for name, parameter in model.named_parameters():
        if name not in stored:
            raise UserError(
                f"{checkpoint.folder}: tensor {name} of a {kind} model is missing; "
                "training such a checkpoint is not supported",
                hint="transformers renames or fuses such tensors when it loads them (for example "
                "experts that are stored one by one), and they could not be written back.",
            )
        if stored[name] != tuple(parameter.shape):
            raise UserError(
                f"{checkpoint.folder}: {name} has shape {list(stored[name])}, config.json requires "
                f"{list(parameter.shape)}",
                hint="They belong to different models, or only one of the two was resized.",
            )


def _check_student(student: Any, run: TrainingRun, init: Checkpoint) -> None:
    if run.recipe.head == "tied" and not student.config.tie_word_embeddings:
        raise UserError(
            f"recipe.head=tied, but the head of {init.folder} is untied",
            hint="Convert it again with amnesia convert --tie-head config.",
        )
    if run.train.objective == "align":
        layers = getattr(student.base_model, "layers", ())
        chosen = range(len(layers)) if run.train.align_layers == "all" else run.train.align_layers
        for i in chosen:
            if i >= len(layers) or not isinstance(layers[i].self_attn, LightningMixer):
                raise UserError(
                    f"{init.folder}: layer {i} has no lightning mixer to align",
                    hint="Stage 1 starts from the output of amnesia convert --stage 1.",
                )


def _check_teacher(student: Any, teacher: Any, init: Checkpoint, source: Checkpoint) -> None:
    for key in ("vocab_size", "hidden_size", "num_hidden_layers"):
        expected, actual = getattr(student.config, key), getattr(teacher.config, key)
        if expected != actual:
            raise UserError(
                f"{key}: {init.folder} has {expected}, its teacher {source.folder} has {actual}"
            )


@torch.no_grad()
def _round_buffers(student: Any) -> None:
    for name, buffer in student.named_buffers():
        if name.endswith(("log_decay", "inv_freq")):
            buffer.copy_(buffer.to(torch.bfloat16))
