"""What a folder that should be a checkpoint is instead, and what to type then.

Every command that takes a checkpoint folder opens it through `checkpoint.open_checkpoint`, and so
asks here first.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path

from amnesia_bench.errors import AmnesiaError, UserError
from amnesia_bench.store.files import read_json
from amnesia_bench.store.missing_folder import newest_snapshot, no_folder
from amnesia_bench.weights.file_names import (
    ADAPTER_CONFIG,
    CONFIG,
    INDEX,
    PICKLE_SUFFIXES,
    SINGLE_FILE,
    is_weights,
)

_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")


def check_checkpoint_folder(folder: Path) -> None:
    """Raise UserError unless `folder` holds config.json and safetensors as transformers names them.

    The message says what it is instead: a name of the hub, a file, an adapter, the state of a
    training run, a folder of checkpoints, weights in another form.
    """
    if not folder.is_dir():
        raise no_folder(folder)
    if _has_weights(folder) and _there(folder / CONFIG):
        return
    for recognise in _KINDS:
        if (error := recognise(folder)) is not None:
            raise error
    partial = folder.resolve()
    name = partial.parent.parent.name.removeprefix("models--").replace("--", "/")
    raise UserError(
        f"{folder}: holds neither {SINGLE_FILE} nor {INDEX}.",
        hint=f"The hub's cache holds a part of this model only. Fetch all: hf download {name}"
        if partial.parent.name == "snapshots"
        else "Give the folder that save_pretrained wrote.",
    )


def _has_weights(folder: Path) -> bool:
    return _there(folder / SINGLE_FILE) or _there(folder / INDEX)


def _there(path: Path) -> bool:
    """Return whether there is something of that name, be it a link that leads to nothing."""
    return path.exists() or path.is_symlink()


def _cached_repository(folder: Path) -> UserError | None:
    if not (folder / "snapshots").is_dir():
        return None
    newest = newest_snapshot(folder)
    return UserError(
        f"{folder}: is a repository of the hub's cache; its models are in snapshots/.",
        hint=f"Give {newest}" if newest is not None else "None of them is complete.",
    )


def _adapter(folder: Path) -> UserError | None:
    if not (folder / ADAPTER_CONFIG).exists() and not any(folder.glob("adapter_model.*")):
        return None
    base, kind = _adapter_of(folder)
    return UserError(
        f"{folder}: is an adapter ({kind}) of {base or 'a model that it does not name'}, not a "
        "model.",
        hint=f"Merge it into its base model first, with peft installed:\n{merge_command(folder)}",
    )


def merge_command(adapter: Path) -> str:
    """Return the command that merges an adapter into the base model that it names."""
    base, _ = _adapter_of(adapter)
    tokenizer = adapter if (adapter / "tokenizer_config.json").exists() else base or "BASE"
    merged = _text(f"{adapter}-merged")
    return _python(
        "from peft import AutoPeftModelForCausalLM as M; "
        "from transformers import AutoTokenizer as T; "
        f'M.from_pretrained({_text(adapter)}, dtype="auto").merge_and_unload()'
        f".save_pretrained({merged}); T.from_pretrained({_text(tokenizer)})"
        f".save_pretrained({merged})"
    )


def _adapter_of(folder: Path) -> tuple[str | None, str]:
    """Return the base model that an adapter names, if it does, and its kind."""
    try:
        content = read_json(folder / ADAPTER_CONFIG)
    except AmnesiaError:
        content = None
    content = content if isinstance(content, dict) else {}
    base = content.get("base_model_name_or_path")
    return base if isinstance(base, str) else None, str(content.get("peft_type") or "LoRA")


def _deepspeed(folder: Path) -> UserError | None:
    signs = [*_names(folder, "zero_to_fp32.py", "global_step*", "*zero_pp_rank*")]
    if not signs:
        return None
    script = folder / "zero_to_fp32.py"
    program = _quoted(script) if script.exists() else "-m deepspeed.utils.zero_to_fp32"
    command = f"python {program} {_quoted(folder)} {_quoted(folder)}-whole"
    return UserError(
        f"{folder}: holds the shards of a DeepSpeed run ({signs[0]}), not a model.",
        hint=f"Put them together: {command} --safe_serialization\nThen copy config.json and the "
        "tokenizer into that folder.",
    )


def _fsdp(folder: Path) -> UserError | None:
    parents = {
        path.parent for pattern in ("*.distcp", "*/*.distcp") for path in folder.glob(pattern)
    }
    parents |= set(folder.glob("pytorch_model_fsdp_*"))
    models = {path for path in parents if not path.name.startswith("optimizer")}
    if not parents:
        return None
    source = max(models or parents, key=_newness)
    return UserError(
        f"{folder}: holds the shards of an FSDP run ({source.name}/), not a model.",
        hint=f"Put them together: accelerate merge-weights {_quoted(source)} "
        f"{_quoted(folder)}-whole\nThen copy config.json and the tokenizer into that folder.",
    )


def _megatron(folder: Path) -> UserError | None:
    signs = [*_names(folder, "latest_checkpointed_iteration.txt", "mp_rank_*", "*.nemo")]
    if not signs:
        return None
    return UserError(
        f"{folder}: holds a checkpoint of Megatron or NeMo ({signs[0]}).",
        hint="Convert it to Hugging Face form with the converter of the framework that wrote it.",
    )


def _folder_of_checkpoints(folder: Path) -> UserError | None:
    found = [child for child in sorted(folder.iterdir()) if child.is_dir() and _holds_model(child)]
    if not found:
        return None
    found.sort(key=_newness, reverse=True)
    names = ", ".join(child.name for child in found[:5]) + (", ..." if len(found) > 5 else "")
    return UserError(
        f"{folder}: holds no weights itself; below it are {names}.",
        hint=f"Give one of them: {found[0]}",
    )


def _newness(checkpoint: Path) -> tuple[int, float]:
    """Order checkpoint-500 by its number, and what has none by its time."""
    number = re.search(r"(\d+)$", checkpoint.name)
    return int(number.group(1)) if number else -1, checkpoint.stat().st_mtime


def _holds_model(folder: Path) -> bool:
    parts = ("adapter_model.", "global_step", "pytorch_model_fsdp_")
    return any(is_weights(name) or name.startswith(parts) for name in _names(folder, "*"))


def _no_config(folder: Path) -> UserError | None:
    if not _has_weights(folder):
        return None
    return UserError(
        f"{folder / CONFIG}: is missing; without it the weights have no meaning.",
        hint="Copy it from the model that this one was trained from, or give the folder that "
        "save_pretrained wrote.",
    )


def _original_format(folder: Path) -> UserError | None:
    signs = [*_names(folder, "consolidated*.safetensors", "consolidated*.pth")]
    if not signs:
        return None
    return UserError(
        f"{folder}: holds its weights in the form of Mistral's or Meta's own code ({signs[0]}).",
        hint="Give the model in Hugging Face form (model.safetensors), which the hub has beside "
        "that file or in a repository whose name ends in -hf: amnesia download OWNER/NAME --out "
        "FOLDER. Or convert it with transformers 4: "
        "python -m transformers.models.mistral.convert_mistral_weights_to_hf (or llama)",
    )


def _gguf(folder: Path) -> UserError | None:
    signs = [*_names(folder, "*.gguf")]
    if not signs:
        return None
    return UserError(
        f"{folder}: holds its weights as GGUF ({signs[0]}), for llama.cpp; only safetensors are "
        "read.",
        hint="Give the safetensors that it was made from, and make the GGUF of what is restored.",
    )


def _pickles(folder: Path) -> UserError | None:
    signs = [
        name
        for name in _names(folder, "*")
        if Path(name).suffix in PICKLE_SUFFIXES and is_weights(name)
    ]
    if not signs:
        return None
    usual = any(name.startswith("pytorch_model") and "fsdp" not in name for name in signs)
    converter = (
        "from transformers import AutoModelForCausalLM as M; "
        f"M.from_pretrained({_text(folder)}).save_pretrained({_text(f'{folder}-safetensors')})"
        if usual
        else "import torch; from safetensors.torch import save_file as s; "
        f"t = torch.load({_text(folder / signs[0])}, weights_only=True); "
        f"s({{n: x.clone() for n, x in t.items()}}, {_text(folder / SINGLE_FILE)})"
    )
    return UserError(
        f"{folder}: holds its weights as pickle ({', '.join(signs[:3])}), which can run code "
        "when it is read; only safetensors are.",
        hint=f"Convert it: {_python(converter)}",
    )


def _other_frameworks(folder: Path) -> UserError | None:
    signs = [*_names(folder, "flax_model*", "tf_model*", "*.npz", "*.onnx")]
    if not signs:
        return None
    return UserError(
        f"{folder}: holds its weights for another framework ({signs[0]}); only safetensors are "
        "read.",
        hint="Look for the same model with safetensors.",
    )


def _shards_without_index(folder: Path) -> UserError | None:
    signs = [*_names(folder, "*.safetensors")]
    if not signs:
        return None
    shards = [match for name in signs if (match := _SHARD.fullmatch(name))]
    if not shards:
        return UserError(
            f"{folder}: holds {signs[0]}, but neither {SINGLE_FILE} nor {INDEX}.",
            hint=f"If that file is the whole model, name it {SINGLE_FILE}.",
        )
    return UserError(
        f"{folder}: holds {len(shards)} of {int(shards[0].group(2))} shards and no {INDEX}, which "
        "lists them.",
        hint="Download or save this checkpoint again.",
    )


_KINDS: tuple[Callable[[Path], UserError | None], ...] = (
    _cached_repository,
    _no_config,
    _adapter,
    _deepspeed,
    _fsdp,
    _megatron,
    _original_format,
    _gguf,
    _pickles,
    _other_frameworks,
    _shards_without_index,
    _folder_of_checkpoints,
)


def _names(folder: Path, *patterns: str) -> Iterable[str]:
    for pattern in patterns:
        yield from sorted(path.name for path in folder.glob(pattern))


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _python(code: str) -> str:
    """Return the command that runs `code`, safe to paste whatever the names in it."""
    return f"python -c {shlex.quote(code)}"


def _text(name: Path | str) -> str:
    """Return a name as a string of Python's; that of an adapter's base comes from a stranger."""
    return json.dumps(str(name))
