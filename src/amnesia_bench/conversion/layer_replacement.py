"""The teacher with the linear mixer of a stage-1 student in one layer, in memory.

All other layers are the teacher's, unchanged: their softmax attention keeps RoPE and has no output
gate, because only a later training could make up for such changes. Source: attn-layer-selection of
thunlp/hybrid-linear-attention @229e301, whose replaced models score like the original.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from amnesia_bench.config.load import validate_values
from amnesia_bench.config.schema import ModelFile
from amnesia_bench.conversion.conversion import Conversion, plan_conversion, read_tensor
from amnesia_bench.errors import UserError
from amnesia_bench.modeling import HypeNetForCausalLM
from amnesia_bench.modeling.numerics import multiplies
from amnesia_bench.requests.checkpoints import ConvertRequest
from amnesia_bench.weights.checkpoint import Checkpoint, open_checkpoint

_LINEAR = "lightning-attn"


def replacement_request(teacher: Path, student: Path, layer: int | None) -> ConvertRequest:
    """Return the conversion that writes the teacher with the student's mixer in one layer.

    With `layer` None, all layers are the teacher's.

    Raises:
        UserError: the student is not a HypeNet in which all layers are linear.
    """
    config = open_checkpoint(student).config
    if config.get("model_type") != "hypenet":
        raise UserError(
            f"{student}: is a model of type {config.get('model_type')}, not a stage-1 student",
            hint="amnesia convert --stage 1 creates the student, and amnesia train aligns it.",
        )
    mixers = config.get("mixer_types") or ["attn"]
    assert isinstance(mixers, list)
    if softmax := [i for i, mixer in enumerate(mixers) if mixer == "attn"]:
        raise UserError(
            f"{student}: layer {softmax[0]} has softmax attention, so it has no linear mixer",
            hint="Give the trained student of stage 1, whose layers are all linear.",
        )
    changes = {
        "mixer_types": [_LINEAR if i == layer else "attn" for i in range(len(mixers))],
        "attn_use_rope": True,
        "attn_use_output_gate": False,
        "attn_logits_scaling": None,
    }
    shape = {"name": str(student / "config.json"), "values": {**config, **changes}}
    return ConvertRequest(
        teacher=teacher, model=validate_values(ModelFile, shape), stage=2, student=student
    )


class ReplaceableLayers:
    """A teacher in memory, as a HypeNet, in which one layer at a time can become linear.

    Args:
        teacher: folder of the Qwen3 teacher.
        student: folder of its trained stage-1 student.
        device: the device for the weights.

    Raises:
        UserError: the teacher is not a Qwen3 checkpoint, or the student is not a stage-1 student of
            this teacher.
    """

    def __init__(self, teacher: Path, student: Path, device: torch.device) -> None:
        self._folders = teacher, student
        original = plan_conversion(replacement_request(teacher, student, None))
        _check_student(original)
        self.module = _loaded(original, device)

    @property
    def num_layers(self) -> int:
        """The number of layers of the teacher."""
        return int(self.module.config.num_hidden_layers)

    @contextmanager
    def replaced(self, layer: int | None) -> Iterator[None]:
        """Give `module` the student's mixer in one layer inside the `with` block; None in no layer.

        Caches from before the block do not fit the model inside it, and vice versa.
        """
        if layer is None:
            yield
            return
        config, block = self.module.config, self.module.model.layers[layer]
        attention, mixers = block.self_attn, list(config.mixer_types)
        block.self_attn = self._linear_mixer(layer)
        config.mixer_types = [_LINEAR if i == layer else mixers[i] for i in range(len(mixers))]
        try:
            yield
        finally:
            block.self_attn, config.mixer_types = attention, mixers

    def _linear_mixer(self, layer: int) -> Any:
        conversion = plan_conversion(replacement_request(*self._folders, layer))
        prefix = f"model.layers.{layer}.self_attn."
        weight = self.module.model.layers[layer].self_attn.q_proj.weight
        mixer_class = type(self.module.model).layer_class.linear_mixer
        mixer = mixer_class(conversion.config, layer)
        weights = {name.removeprefix(prefix): x for name, x in conversion.tensors(prefix)}
        mixer.load_state_dict(weights)
        return mixer.to(device=weight.device, dtype=weight.dtype).eval()


def _loaded(conversion: Conversion, device: torch.device) -> Any:
    """Return the model of a conversion, with its weights on a device."""
    dtype = read_tensor(conversion.teacher, "model.embed_tokens.weight").dtype
    model: Any = HypeNetForCausalLM._from_config(conversion.config, dtype=dtype)
    for name, tensor in conversion.tensors():
        model.get_parameter(name).data = tensor
    model.to(device)
    return (model if multiplies(dtype, device) else model.float()).eval()


def _check_student(conversion: Conversion) -> None:
    """Check that a student has the teacher's weights everywhere but in the mixers.

    Stage 1 trains only the mixers, so a student of another teacher has other weights.
    """
    teacher, student = conversion.teacher, conversion.student
    assert student is not None
    for name in teacher.tensors:
        if ".self_attn." in name or (name == "lm_head.weight" and name not in student.tensors):
            continue
        theirs, own = read_tensor(teacher, name), read_tensor(student, name)
        if theirs.shape != own.shape or not torch.equal(theirs.to(own.dtype), own):
            raise _not_its_student(teacher, student, name)


def _not_its_student(teacher: Checkpoint, student: Checkpoint, name: str) -> UserError:
    return UserError(
        f"{student.folder}: is not a stage-1 student of {teacher.folder}: {name} differs, and "
        "stage 1 trains only the mixers",
        hint="Give the teacher from which the student was converted.",
    )
