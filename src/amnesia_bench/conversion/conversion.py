"""Convert a Qwen3 teacher to a HypeNet checkpoint.

Stage 1 creates the student for hidden-state alignment, in which every layer has a lightning mixer.
Stage 2 creates the hybrid: the layers that the config marks as softmax layers get the teacher's
attention; all other layers get lightning mixers, initialised as in stage 1 or copied from a trained
stage-1 student. Source: HALO, arXiv 2601.22156, and the initialisation in its code
(thunlp/hybrid-linear-attention @229e301).

The softmax layers are those of the config, or those that `amnesia select-layers` wrote to a file.
Tensors are copied one at a time from the teacher's safetensors to the shards of the new checkpoint.

Shapes: H lightning heads, G their KV heads, Q KV heads of the teacher, D head dim, M hidden size.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from amnesia_bench.conversion.selected_layers import read_selection
from amnesia_bench.errors import UserError
from amnesia_bench.modeling import HypeNetConfig, HypeNetForCausalLM
from amnesia_bench.modeling.named_configs import hypenet_config
from amnesia_bench.modeling.shard_writer import ShardWriter
from amnesia_bench.requests.checkpoints import ConvertRequest
from amnesia_bench.store.provenance import collect_provenance
from amnesia_bench.store.publish import publishing
from amnesia_bench.weights.checkpoint import Checkpoint, open_checkpoint
from amnesia_bench.weights.identity import parent_by_contents
from amnesia_bench.weights.side_files import side_files

_COPIED = (
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    "generation_config.json",
)
# Config keys that must be equal in teacher and student, so that copied weights fit the student.
_SHARED_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "attention_bias",
)


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A conversion that was checked: the config of the new model, and where its weights come from.

    `student` is the trained stage-1 student, or None. `seed` initializes new parameters.
    """

    config: HypeNetConfig
    teacher: Checkpoint
    student: Checkpoint | None
    seed: int

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the weights of every tensor of the new model, read one at a time.

        With a `prefix`, only tensors whose names begin with it. New parameters then have other
        values, because each takes its numbers from one generator in turn.

        Raises:
            UserError: a tensor is missing, or has another shape than the config implies.
        """
        return _tensors(self, prefix)


def plan_conversion(request: ConvertRequest) -> Conversion:
    """Check the inputs of a conversion; nothing is written.

    Raises:
        UserError: as `convert`.
    """
    if request.stage == 1 and request.student is not None:
        raise UserError("stage 1 takes no student", hint="Leave --student out, or use --stage 2.")
    if request.stage == 1 and request.layers is not None:
        raise UserError(
            "stage 1 takes no selected layers: all its layers are linear",
            hint="Leave --layers out, or use --stage 2.",
        )
    teacher = open_checkpoint(request.teacher)
    return Conversion(
        config=_student_config(request, _qwen3_config(teacher)),
        teacher=teacher,
        student=None if request.student is None else open_checkpoint(request.student),
        seed=request.seed,
    )


def convert(request: ConvertRequest, out: Path) -> HypeNetConfig:
    """Write a HypeNet checkpoint to `out`, complete or not at all, and return its config.

    Copied weights are bit-identical to their source and keep its dtype. New parameters get the
    dtype of the teacher's embeddings.

    Raises:
        UserError: the teacher is not a Qwen3 safetensors checkpoint, the teacher or the stage-1
            student does not fit the config, a student or selected layers were given for stage 1,
            the selected layers do not fit the teacher, or `out` exists.
    """
    conversion = plan_conversion(request)
    config, teacher, student = conversion.config, conversion.teacher, conversion.student
    provenance = collect_provenance(sys.argv, seeds={"new_parameters": request.seed})
    with publishing(out) as work:
        writer = ShardWriter(work.folder)
        for name, tensor in conversion.tensors():
            writer.add(name, tensor)
        writer.close()
        for file in side_files(teacher.folder):
            if any(file.match(pattern) for pattern in _COPIED):
                shutil.copyfile(teacher.folder / file, work.folder / file.name)
        config.save_pretrained(work.folder)
        sources = {"teacher": teacher} | ({} if student is None else {"student": student})
        parents = [parent_by_contents(role, source) for role, source in sources.items()]
        work.finish("converted", parents, provenance)
    return config


def _qwen3_config(teacher: Checkpoint) -> PreTrainedConfig:
    # AutoConfig would also refuse an unknown model_type, but with a longer message.
    model_type = teacher.config.get("model_type")
    if model_type != "qwen3":
        raise UserError(
            f"{teacher.folder} is a model of type {model_type}",
            hint="HypeNet starts from dense Qwen3 checkpoints (Qwen3-1.7B, -4B, -8B).",
        )
    config: PreTrainedConfig = AutoConfig.from_pretrained(
        teacher.folder, local_files_only=True, trust_remote_code=False
    )
    rope = config.rope_parameters or {}
    if rope.get("rope_type", "default") != "default":
        raise UserError(
            f"{teacher.folder}: its config.json scales positions ({_format_scaling(rope)}), which "
            "HypeNet does not support",
            hint="Published Qwen3 weights were trained without it: YaRN is added for serving. To "
            "convert them as trained, remove rope_scaling (or all but rope_theta of "
            "rope_parameters) from a copy of that config.json.",
        )
    return config


def _format_scaling(rope: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {rope[key]}" for key in sorted(rope) if key != "rope_theta")


def _student_config(request: ConvertRequest, teacher: PreTrainedConfig) -> HypeNetConfig:
    config = hypenet_config(request.model)
    if request.layers is not None:
        mixers = _selected_mixers(request.layers, config.num_hidden_layers)
        config = _with_changes(config, mixer_types=mixers)
    for key in _SHARED_KEYS:
        in_student, in_teacher = getattr(config, key), getattr(teacher, key)
        if in_student != in_teacher:
            raise UserError(
                f"{key}: the teacher {request.teacher} has {in_teacher}, but {request.model.name} "
                f"needs {in_student}",
                hint="The teacher of 2b is Qwen3-1.7B, that of 5b Qwen3-4B, that of 9b Qwen3-8B.",
            )
    for key, in_student, in_teacher in (
        ("lightning_nh", config.lightning_nh, teacher.num_attention_heads),
        ("lightning_head_dim", config.lightning_head_dim, teacher.head_dim),
        ("rope_theta", _theta(config), _theta(teacher)),
    ):
        if in_student != in_teacher:
            raise UserError(f"{key} is {in_student}, but the teacher needs {in_teacher}")
    assert config.lightning_nkv is not None
    if config.lightning_nkv % teacher.num_key_value_heads:
        raise UserError(
            f"lightning_nkv is {config.lightning_nkv}, not a multiple of the teacher's "
            f"{teacher.num_key_value_heads} key/value heads"
        )
    # Only layers that stay softmax layers are checked. A teacher layer that gets a lightning mixer
    # may have a sliding window.
    windows = [i for i in config.softmax_layers if teacher.layer_types[i] == "sliding_attention"]
    if windows:
        raise UserError(
            f"{request.teacher}: its layers {windows} have a sliding window, and the softmax "
            "layers of a HypeNet have none",
            hint="To convert it with full attention, set use_sliding_window to false in a copy of "
            "its config.json.",
        )
    if request.stage == 1:
        config = _with_changes(config, mixer_types=["lightning-attn"] * config.num_hidden_layers)
    tie_embeddings = config.tie_word_embeddings
    if request.tie_head == "teacher" or teacher.tie_word_embeddings:
        tie_embeddings = bool(teacher.tie_word_embeddings)
    return _with_changes(config, tie_word_embeddings=tie_embeddings, dtype=teacher.dtype)


def _selected_mixers(file: Path, num_layers: int) -> list[str]:
    """Return the mixers of a hybrid with the softmax layers in a file of `select_layers`."""
    selection = read_selection(file)
    if len(selection.layers) != num_layers:
        raise UserError(
            f"{file}: selects from {len(selection.layers)} layers, but the model has {num_layers}",
            hint="Select the layers of this teacher: amnesia score-layers, then select-layers.",
        )
    return ["attn" if i in selection.selected else "lightning-attn" for i in range(num_layers)]


def _theta(config: PreTrainedConfig) -> float:
    return float((config.rope_parameters or {})["rope_theta"])


def _with_changes(config: HypeNetConfig, **changes: object) -> HypeNetConfig:
    return HypeNetConfig.from_dict({**config.to_dict(), "architectures": _ARCHITECTURES} | changes)


_ARCHITECTURES = ["HypeNetForCausalLM"]


def _tensors(conversion: Conversion, prefix: str) -> Iterator[tuple[str, Tensor]]:
    config, teacher, student = conversion.config, conversion.teacher, conversion.student
    with torch.device("meta"):
        expected = {
            name: tensor.shape for name, tensor in HypeNetForCausalLM(config).state_dict().items()
        }
    if config.tie_word_embeddings:
        del expected["lm_head.weight"]
    softmax = {f"model.layers.{layer}" for layer in config.softmax_layers}
    generator = torch.Generator("cpu").manual_seed(conversion.seed)
    dtype = read_tensor(teacher, "model.embed_tokens.weight").dtype  # also of new parameters
    for name, shape in expected.items():
        if not name.startswith(prefix):
            continue
        mixer, dot, _ = name.partition(".self_attn.")
        lightning = bool(dot) and mixer not in softmax
        if student is not None and lightning:
            tensor = read_tensor(student, name)
        elif name in teacher.tensors:
            tensor = read_tensor(teacher, name)
            if lightning and (".k_proj." in name or ".v_proj." in name):
                tensor = _expand_heads(tensor, shape[0], config)
        else:
            tensor = _new_parameter(name, shape, config, generator).to(dtype)
        if tensor.shape != shape:
            raise UserError(
                f"{name} has shape {tuple(tensor.shape)} in the source, but the config needs "
                f"{tuple(shape)}"
            )
        yield name, tensor


def read_tensor(checkpoint: Checkpoint, name: str) -> Tensor:
    """Return one tensor of a checkpoint, in host memory.

    Raises:
        UserError: the checkpoint has no such tensor, or it is not floating-point.
    """
    if name not in checkpoint.tensors:
        raise UserError(f"{checkpoint.folder} has no tensor {name}")
    _, entry = checkpoint.tensors[name]
    if entry.dtype not in _DTYPES:
        raise UserError(
            f"{checkpoint.folder}: {name} has dtype {entry.dtype}; weights must be floating-point"
        )
    flat = torch.frombuffer(bytearray(checkpoint.read(name)), dtype=_DTYPES[entry.dtype])
    return flat.reshape(entry.shape)


def _expand_heads(tensor: Tensor, rows: int, config: HypeNetConfig) -> Tensor:
    """Repeat each KV head consecutively, so that each query head still uses a copy of its own."""
    assert config.lightning_head_dim is not None
    heads = tensor.unflatten(0, (-1, config.lightning_head_dim))  # [Q, D, M] or [Q, D]
    repeats = rows // tensor.shape[0]
    expanded: Tensor = heads.repeat_interleave(repeats, dim=0).flatten(0, 1)
    return expanded


def _new_parameter(
    name: str, shape: torch.Size, config: HypeNetConfig, generator: torch.Generator
) -> Tensor:
    """Initialise a parameter that the teacher lacks (o_norm, z_proj or o_gate)."""
    kind = name.split(".")[-2]
    if kind == "o_norm":
        return torch.ones(shape)
    if kind == "z_proj":
        # The default of nn.Linear, because the authors create this layer outside `post_init`.
        bound = 1 / math.sqrt(config.hidden_size)
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    if kind == "o_gate":
        return torch.empty(shape).normal_(0, config.initializer_range, generator=generator)
    raise UserError(
        f"the teacher has no {name}",
        hint="Check that its checkpoint is complete; its config.json implies this tensor.",
    )
