"""Names of files in a checkpoint folder, and tests for files that are not part of the model."""

from __future__ import annotations

import re
from pathlib import PurePath

CONFIG = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
# Suffixes of weights in any format. Copied next to repaired safetensors, they would be stale.
OTHER_WEIGHT_SUFFIXES = PICKLE_SUFFIXES | {
    ".distcp", ".gguf", ".h5", ".litertlm", ".mlmodel", ".msgpack", ".nemo", ".npz", ".onnx",
    ".ot", ".pdparams", ".safetensors", ".tflite",
}  # fmt: skip
# Folders and files that Trainer, TRL, accelerate, DeepSpeed, LLaMA-Factory, axolotl, NeMo and
# Megatron leave next to the model that they trained. For example, trainer_state.json and the
# result files describe the training of post; they would be wrong for a model restored from it.
_TRAINING_LEFTOVERS = re.compile(
    r"(checkpoint|global_step|epoch|step|iter)[-_]?\d+|checkpoint-.+|checkpoints"
    r"|pytorch_model_fsdp_\d+|(optimizer|scheduler)(_\d+|\.(pt|bin|pth))?|adapter_(config|model).*"
    r"|runs|wandb|logs?|tensorboard|tb_logs|mlruns|lightning_logs|swanlog|__pycache__"
    r"|events\.out\.tfevents.*|.*\.(log|lock|tmp|incomplete|wandb|out)"
    r"|trainer_state\.json|trainer_log\.jsonl|training_args\.(bin|json|ya?ml)|training_.*loss.*\.png"
    r"|(all|train|eval|test|predict)_results\.json|(rng_state|random_states)_?\w*\.(pth|pkl|pt)"
    r"|scaler\.pt|zero_to_fp32\.py|latest|latest_checkpointed_iteration\.txt"
)


def is_not_model_file(path: PurePath) -> bool:
    """Return whether a path, relative to a checkpoint folder, is not a side file of the model.

    Such paths are leftovers of a training run, hidden files, weights in any format, and files named
    after weights, for example `x.safetensors.bak`, `x.bin.index.json` and `x.onnx_data_1`.
    """
    suffixes = {suffix.partition("_")[0] for suffix in path.suffixes}
    return not OTHER_WEIGHT_SUFFIXES.isdisjoint(suffixes) or any(
        part.startswith(".") or _TRAINING_LEFTOVERS.fullmatch(part) for part in path.parts
    )


def is_weights(name: str) -> bool:
    """Return whether a file with this name contains model weights, in any format."""
    suffix = PurePath(name).suffix
    return suffix in OTHER_WEIGHT_SUFFIXES and not _TRAINING_LEFTOVERS.fullmatch(name)
