"""Recognise folders that are not checkpoints, and tell the user what to do instead.

Every command opens a checkpoint folder with `checkpoint.open_checkpoint`, which first calls
`check_checkpoint_folder`.
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
    """Raise UserError unless `folder` has a config.json, and safetensors named as in transformers.

    The message says what the path is instead, for example a model name on the hub, a file, an
    adapter, the state of a training run, a folder of checkpoints, or weights in another format.
    """
    if not folder.is_dir():
        raise no_folder(folder)
    if _has_weights(folder) and _exists_or_links(folder / CONFIG):
        return
    for recognise_kind in _KINDS:
        if (error := recognise_kind(folder)) is not None:
            raise error
    partial = folder.resolve()
    name = partial.parent.parent.name.removeprefix("models--").replace("--", "/")
    raise UserError(
        f"{folder}: holds neither {SINGLE_FILE} nor {INDEX}.",
        hint=f"The hub's cache has only a part of this model. Download the rest: hf download {name}"
        if partial.parent.name == "snapshots"
        else "Give the folder that save_pretrained wrote.",
    )


def _has_weights(folder: Path) -> bool:
    return _exists_or_links(folder / SINGLE_FILE) or _exists_or_links(folder / INDEX)


def _exists_or_links(path: Path) -> bool:
    """Return whether the path exists; a broken link counts as existing."""
    return path.exists() or path.is_symlink()


def _cached_repository(folder: Path) -> UserError | None:
    if not (folder / "snapshots").is_dir():
        return None
    newest = newest_snapshot(folder)
    return UserError(
        f"{folder}: is a repository in the hub's cache; its models are in snapshots/.",
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
    """Return the shell command that merges an adapter into the base model named in its config."""
    base, _ = _adapter_of(adapter)
    tokenizer = adapter if (adapter / "tokenizer_config.json").exists() else base or "BASE"
    merged = _literal(f"{adapter}-merged")
    return _python_command(
        "from peft import AutoPeftModelForCausalLM as M; "
        "from transformers import AutoTokenizer as T; "
        f'M.from_pretrained({_literal(adapter)}, dtype="auto").merge_and_unload()'
        f".save_pretrained({merged}); T.from_pretrained({_literal(tokenizer)})"
        f".save_pretrained({merged})"
    )


def _adapter_of(folder: Path) -> tuple[str | None, str]:
    """Return the base model named in an adapter's config (or None), and the kind of adapter."""
    try:
        content = read_json(folder / ADAPTER_CONFIG)
    except AmnesiaError:
        content = None
    content = content if isinstance(content, dict) else {}
    base = content.get("base_model_name_or_path")
    return base if isinstance(base, str) else None, str(content.get("peft_type") or "LoRA")


def _deepspeed(folder: Path) -> UserError | None:
    matches = [*_names(folder, "zero_to_fp32.py", "global_step*", "*zero_pp_rank*")]
    if not matches:
        return None
    script = folder / "zero_to_fp32.py"
    program = _quoted(script) if script.exists() else "-m deepspeed.utils.zero_to_fp32"
    command = f"python {program} {_quoted(folder)} {_quoted(folder)}-whole"
    return UserError(
        f"{folder}: holds the shards of a DeepSpeed run ({matches[0]}), not a model.",
        hint=f"Merge them: {command} --safe_serialization\nThen copy config.json and the "
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
    source = max(models or parents, key=_recency)
    return UserError(
        f"{folder}: holds the shards of an FSDP run ({source.name}/), not a model.",
        hint=f"Merge them: accelerate merge-weights {_quoted(source)} "
        f"{_quoted(folder)}-whole\nThen copy config.json and the tokenizer into that folder.",
    )


def _megatron(folder: Path) -> UserError | None:
    matches = [*_names(folder, "latest_checkpointed_iteration.txt", "mp_rank_*", "*.nemo")]
    if not matches:
        return None
    return UserError(
        f"{folder}: holds a Megatron or NeMo checkpoint ({matches[0]}).",
        hint="Convert it to Hugging Face format with the converter of the framework that wrote it.",
    )


def _folder_of_checkpoints(folder: Path) -> UserError | None:
    checkpoints = [
        child for child in sorted(folder.iterdir()) if child.is_dir() and _contains_model(child)
    ]
    if not checkpoints:
        return None
    checkpoints.sort(key=_recency, reverse=True)
    names = ", ".join(child.name for child in checkpoints[:5]) + (
        ", ..." if len(checkpoints) > 5 else ""
    )
    return UserError(
        f"{folder}: holds no weights itself, but contains the checkpoints {names}.",
        hint=f"Give one of them: {checkpoints[0]}",
    )


def _recency(checkpoint: Path) -> tuple[int, float]:
    """Return a sort key: the number at the end of the name (`checkpoint-500`), then the mtime."""
    number = re.search(r"(\d+)$", checkpoint.name)
    return int(number.group(1)) if number else -1, checkpoint.stat().st_mtime


def _contains_model(folder: Path) -> bool:
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
    matches = [*_names(folder, "consolidated*.safetensors", "consolidated*.pth")]
    if not matches:
        return None
    return UserError(
        f"{folder}: holds weights in the format of Mistral's or Meta's own code ({matches[0]}).",
        hint="Give the model in Hugging Face format (model.safetensors). The hub has it next to "
        "that file or in a repository whose name ends in -hf: amnesia download OWNER/NAME --out "
        "FOLDER. Or convert it with transformers 4: "
        "python -m transformers.models.mistral.convert_mistral_weights_to_hf (or llama)",
    )


def _gguf(folder: Path) -> UserError | None:
    matches = [*_names(folder, "*.gguf")]
    if not matches:
        return None
    return UserError(
        f"{folder}: holds its weights as GGUF ({matches[0]}), for llama.cpp; only safetensors are "
        "read.",
        hint="Give the safetensors that it was made from, and convert the restored model to GGUF.",
    )


def _pickles(folder: Path) -> UserError | None:
    matches = [
        name
        for name in _names(folder, "*")
        if Path(name).suffix in PICKLE_SUFFIXES and is_weights(name)
    ]
    if not matches:
        return None
    loads_in_transformers = any(
        name.startswith("pytorch_model") and "fsdp" not in name for name in matches
    )
    converter = (
        "from transformers import AutoModelForCausalLM as M; "
        f"M.from_pretrained({_literal(folder)}).save_pretrained({_literal(f'{folder}-safetensors')})"
        if loads_in_transformers
        else "import torch; from safetensors.torch import save_file as s; "
        f"t = torch.load({_literal(folder / matches[0])}, weights_only=True); "
        f"s({{n: x.clone() for n, x in t.items()}}, {_literal(folder / SINGLE_FILE)})"
    )
    return UserError(
        f"{folder}: holds its weights as pickle ({', '.join(matches[:3])}), which can run code "
        "when it is loaded; only safetensors are read.",
        hint=f"Convert it: {_python_command(converter)}",
    )


def _other_frameworks(folder: Path) -> UserError | None:
    matches = [*_names(folder, "flax_model*", "tf_model*", "*.npz", "*.onnx")]
    if not matches:
        return None
    return UserError(
        f"{folder}: holds its weights for another framework ({matches[0]}); only safetensors are "
        "read.",
        hint="Look for the same model with safetensors.",
    )


def _shards_without_index(folder: Path) -> UserError | None:
    matches = [*_names(folder, "*.safetensors")]
    if not matches:
        return None
    shards = [match for name in matches if (match := _SHARD.fullmatch(name))]
    if not shards:
        return UserError(
            f"{folder}: holds {matches[0]}, but neither {SINGLE_FILE} nor {INDEX}.",
            hint=f"If that file is the whole model, name it {SINGLE_FILE}.",
        )
    return UserError(
        f"{folder}: holds {len(shards)} of {int(shards[0].group(2))} shards but no {INDEX}, which "
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


def _python_command(code: str) -> str:
    """Return the shell command that runs `code`; its quoting is safe for any name in the code."""
    return f"python -c {shlex.quote(code)}"


def _literal(name: Path | str) -> str:
    """Return a name as a Python string literal, because an adapter's base name is untrusted."""
    return json.dumps(str(name))
