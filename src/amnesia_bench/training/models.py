"""From checkpoint folders to the module that is trained, spread over the processes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import amnesia_bench.modeling  # noqa: F401 - registers HypeNet with transformers' auto classes
from amnesia_bench.config.train_schema import Dtype, TrainingRun
from amnesia_bench.errors import UserError
from amnesia_bench.modeling.mixers import LightningMixer
from amnesia_bench.training.freezing import frozen_tensors
from amnesia_bench.training.objectives import (
    Align,
    Distill,
    NextToken,
    Teacher,
    isolate_without_mask,
)
from amnesia_bench.training.processes import Processes
from amnesia_bench.training.sharding import DTYPES, shard
from amnesia_bench.weights.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What the loop trains.

    `names` maps the parameters of `objective` to their names in the checkpoint folder; tied ones
    are there once.
    """

    objective: Align | Distill | NextToken
    names: Mapping[str, str]

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The trained parameters by their names in the checkpoint folder."""
        found = self.objective.named_parameters()
        return {self.names[name]: p for name, p in found if p.requires_grad}

    @property
    def untouched(self) -> dict[str, nn.Parameter]:
        """The frozen parameters of the objective by their names in the checkpoint folder."""
        found = self.objective.named_parameters()
        return {self.names[name]: p for name, p in found if not p.requires_grad}


def build_learner(
    run: TrainingRun, init: Checkpoint, teacher: Checkpoint | None, processes: Processes
) -> Learner:
    """Load and spread the student, and the teacher where there is one.

    Raises:
        UserError: a checkpoint does not fit the stage.
    """
    train, recipe = run.train, run.recipe
    frozen = frozen_tensors(train.freeze, init)
    student = _load(init, recipe.master_dtype, train.trusted_code_sha256, processes.first).train()
    _check_student(student, run, init)
    if recipe.buffers_dtype == "bf16":
        _round_buffers(student)
    their: Teacher | None = None
    if teacher is not None:
        their = Teacher(_load(teacher, train.compute_dtype, None, processes.first))
        _check_teacher(student, their.model, init, teacher)
        layers = their.model.base_model.layers
        shard(their, layers, processes, train.compute_dtype)
    if train.objective == "align":
        assert their is not None
        return _aligned(run, student, their, processes)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if train.activation_checkpointing:
        student.activation_checkpointing_enable({"use_reentrant": False})
    isolate_without_mask(student)
    objective = NextToken(run, student) if their is None else Distill(run, student, their)
    shard(objective, student.base_model.layers, processes, train.compute_dtype)
    names = {name: name.removeprefix("student.") for name, _ in objective.named_parameters()}
    parameters = set(names.values())
    if strangers := (parameters - set(init.tensors)) | (frozen - parameters):
        raise UserError(
            f"{init.folder}: its tensors and its model's parameters differ in {min(strangers)}"
        )
    return Learner(objective=objective, names=names)


def _aligned(run: TrainingRun, student: Any, teacher: Teacher, processes: Processes) -> Learner:
    chosen = run.train.align_layers
    layers = range(student.config.num_hidden_layers) if chosen == "all" else chosen
    objective = Align(run, student, teacher, layers)
    shard(objective, objective.mixers.values(), processes, run.train.compute_dtype)
    names = {}
    for name, _ in objective.named_parameters():
        _, layer, rest = name.split(".", 2)
        names[name] = f"model.layers.{layer}.self_attn.{rest}"
    return Learner(objective=objective, names=names)


def _load(
    checkpoint: Checkpoint, dtype: Dtype, trusted_code_sha256: str | None, first: bool
) -> Any:
    """Load a model in the first process; in the others make its shell, which `shard` fills."""
    own_code = checkpoint.config.get("model_type") not in CONFIG_MAPPING
    if own_code:
        _check_trust(checkpoint.folder, trusted_code_sha256)
    auto: Any = AutoModelForCausalLM  # its methods are not typed
    options: Any = {"trust_remote_code": own_code, "local_files_only": True}
    if first:
        return auto.from_pretrained(checkpoint.folder, dtype=DTYPES[dtype], **options)
    config = AutoConfig.from_pretrained(checkpoint.folder, **options)
    with torch.device("meta"):
        model = auto.from_config(config, dtype=DTYPES[dtype], trust_remote_code=own_code)
    # Memory that is never touched takes no place.
    model.to_empty(device="cpu")
    model.tie_weights()
    return model


def _check_trust(folder: Path, trusted_sha256: str | None) -> None:
    files = sorted(folder.glob("*.py"))
    if not files:
        raise UserError(f"{folder}: a model of a type that transformers does not know")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    if digest.hexdigest() != trusted_sha256:
        raise UserError(
            f"{folder} brings model code of its own ({', '.join(p.name for p in files)}), which "
            f"would run here; its hash {digest.hexdigest()} is not train.trusted_code_sha256",
            hint="Read these files. If you trust them, set train.trusted_code_sha256 to the hash.",
        )


def _check_student(student: Any, run: TrainingRun, init: Checkpoint) -> None:
    if run.recipe.head == "tied" and not student.config.tie_word_embeddings:
        raise UserError(
            f"recipe.head=tied, and the head of {init.folder} is untied",
            hint="Convert it anew with amnesia convert --tie-head config.",
        )
    if run.train.objective == "align":
        layers = getattr(student.base_model, "layers", ())
        chosen = range(len(layers)) if run.train.align_layers == "all" else run.train.align_layers
        for i in chosen:
            if i >= len(layers) or not isinstance(layers[i].self_attn, LightningMixer):
                raise UserError(
                    f"{init.folder}: layer {i} has no lightning mixer to align",
                    hint="Stage 1 starts from amnesia convert --stage 1.",
                )


def _check_teacher(student: Any, teacher: Any, init: Checkpoint, theirs: Checkpoint) -> None:
    for key in ("vocab_size", "hidden_size", "num_hidden_layers"):
        ours, other = getattr(student.config, key), getattr(teacher.config, key)
        if ours != other:
            raise UserError(f"{key}: {init.folder} has {ours}, its teacher {theirs.folder} {other}")


@torch.no_grad()
def _round_buffers(student: Any) -> None:
    for name, buffer in student.named_buffers():
        if name.endswith(("log_decay", "inv_freq")):
            buffer.copy_(buffer.to(torch.bfloat16))
