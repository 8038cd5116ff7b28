"""A folder that is no checkpoint is named for what it is, with what to type then."""

from __future__ import annotations

import ast
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.errors import UserError
from amnesia_bench.weights.checkpoint import open_checkpoint
from tests.support.checkpoints import drifted, random_model, save

ADAPTER = {
    "peft_type": "LORA",
    "base_model_name_or_path": "Qwen/Qwen3-1.7B",
    "r": 8,
    "target_modules": ["q_proj", "k_proj"],
}


def refusal(folder: Path) -> UserError:
    with pytest.raises(UserError) as refused:
        open_checkpoint(folder)
    assert refused.value.hint is not None
    return refused.value


def filled(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize("others", [(), ("config.json", "tokenizer_config.json", "optimizer.pt")])
def test_an_adapter(tmp_path: Path, others: tuple[str, ...]) -> None:
    folder = filled(tmp_path / "a", "adapter_model.safetensors", *others)
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    error = refusal(folder)
    assert error.what == f"{folder}: is an adapter (LORA) of Qwen/Qwen3-1.7B, not a model."
    assert "AutoPeftModelForCausalLM as M; from transformers" in error.hint
    assert f'M.from_pretrained("{folder}", dtype="auto").merge_and_unload()' in error.hint
    tokenizer = folder if others else "Qwen/Qwen3-1.7B"
    assert f'T.from_pretrained("{tokenizer}").save_pretrained("{folder}-merged")' in error.hint


@pytest.mark.parametrize("base", ["x'); import os; os.system('id')#", '"); print(1)#', "$(id)`id`"])
def test_a_command_to_paste_holds_names_as_texts(tmp_path: Path, base: str) -> None:
    """The base's name is a stranger's: a shell and Python must take it for a text, whatever it is.

    So must they any name of a folder.
    """
    folder = filled(tmp_path / "it's $(id)", "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    words = shlex.split(refusal(folder).hint.splitlines()[-1])
    texts = [n.value for n in ast.walk(ast.parse(words[2])) if isinstance(n, ast.Constant)]
    assert words[:2] == ["python", "-c"]
    assert sorted(texts) == sorted([str(folder), "auto", *[f"{folder}-merged"] * 2, base])
    (folder / "adapter_model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "adapter_config.json").unlink()
    assert shlex.split(refusal(folder).hint.removeprefix("Convert it: "))[:2] == words[:2]


def test_an_adapter_whose_config_is_damaged(tmp_path: Path) -> None:
    folder = filled(tmp_path / "a", "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("[" * 200_000)
    assert "is an adapter (LoRA) of a model that it does not name" in refusal(folder).what


def test_an_adapter_that_names_no_base(tmp_path: Path) -> None:
    folder = filled(tmp_path / "a", "adapter_model.bin", "config.json")
    assert "of a model that it does not name" in refusal(folder).what


KINDS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "DeepSpeed": (
        ("config.json", "zero_to_fp32.py", "latest", "global_step100/bf16_zero_pp_rank_0.pt"),
        "holds the shards of a DeepSpeed run",
        "zero_to_fp32.py {folder} {folder}-whole --safe_serialization",
    ),
    "DeepSpeed without its script": (
        ("global_step100/bf16_zero_pp_rank_0.pt",),
        "holds the shards of a DeepSpeed run (global_step100)",
        "python -m deepspeed.utils.zero_to_fp32 {folder} {folder}-whole",
    ),
    "FSDP of accelerate": (
        ("config.json", "pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp"),
        "holds the shards of an FSDP run (pytorch_model_fsdp_0/)",
        "accelerate merge-weights {folder}/pytorch_model_fsdp_0 {folder}-whole",
    ),
    "FSDP, several steps": (
        ("step-90/__0_0.distcp", "step-100/__0_0.distcp"),
        "holds the shards of an FSDP run (step-100/)",
        "accelerate merge-weights {folder}/step-100",
    ),
    "torch.distributed.checkpoint": (
        ("config.json", ".metadata", "__0_0.distcp"),
        "holds the shards of an FSDP run",
        "accelerate merge-weights {folder} {folder}-whole",
    ),
    "Megatron": (
        ("latest_checkpointed_iteration.txt", "iter_0000100/mp_rank_00/model_optim_rng.pt"),
        "holds a Megatron or NeMo checkpoint",
        "converter of the framework",
    ),
    "Mistral's own": (
        ("params.json", "consolidated.safetensors", "tekken.json", "config.json"),
        "format of Mistral's or Meta's own code (consolidated.safetensors)",
        "amnesia download OWNER/NAME",
    ),
    "Meta's own": (
        ("params.json", "consolidated.00.pth", "tokenizer.model"),
        "format of Mistral's or Meta's own code (consolidated.00.pth)",
        "convert_mistral_weights_to_hf (or llama)",
    ),
    "GGUF": (
        ("model-Q4_K_M.gguf", "config.json"),
        "holds its weights as GGUF (model-Q4_K_M.gguf)",
        "Give the safetensors that it was made from",
    ),
    "pickle": (
        ("config.json", "pytorch_model.bin", "training_args.bin", "rng_state.pth"),
        "holds its weights as pickle (pytorch_model.bin), which can run code",
        'M.from_pretrained("{folder}").save_pretrained("{folder}-safetensors")',
    ),
    "FSDP, all in one pickle": (
        ("config.json", "pytorch_model_fsdp.bin", "random_states_0.pkl", "scheduler.bin"),
        "holds its weights as pickle (pytorch_model_fsdp.bin), which can run code",
        't = torch.load("{folder}/pytorch_model_fsdp.bin", weights_only=True); ',
    ),
    "Flax": (
        ("config.json", "flax_model.msgpack"),
        "for another framework (flax_model.msgpack)",
        "Look for the same model with safetensors",
    ),
    "shards whose index is missing": (
        ("config.json", "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors"),
        "holds 2 of 3 shards but no model.safetensors.index.json",
        "again",
    ),
    "a file of another name": (
        ("config.json", "my_model.safetensors"),
        "holds my_model.safetensors, but neither model.safetensors",
        "name it model.safetensors",
    ),
    "weights without config.json": (
        ("model.safetensors",),
        "config.json: is missing",
        "Copy it from the model",
    ),
    "checkpoints of a Trainer": (
        (
            "config.json",
            "training_args.bin",
            "checkpoint-90/model.safetensors",
            "checkpoint-500/model.safetensors",
            "checkpoint-1000/adapter_model.safetensors",
            "runs/events",
        ),
        "holds no weights itself, but contains the checkpoints checkpoint-1000, checkpoint-500, "
        "checkpoint-90.",
        "Give one of them: {folder}/checkpoint-1000",
    ),
    "one folder too high": (
        ("final/config.json", "final/model.safetensors", "README.md"),
        "holds no weights itself, but contains the checkpoints final.",
        "Give one of them: {folder}/final",
    ),
    "a repository in the hub's cache": (
        ("refs/main", "snapshots/abc/config.json", "snapshots/abc/model.safetensors"),
        "is a repository in the hub's cache",
        "Give {folder}/snapshots/abc",
    ),
    "a tokenizer": (
        ("tokenizer.json", "tokenizer_config.json"),
        "holds neither model.safetensors nor model.safetensors.index.json",
        "Give the folder that save_pretrained wrote",
    ),
    "nothing": ((".hidden",), "holds neither", "save_pretrained"),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_a_folder_is_instead(tmp_path: Path, name: str) -> None:
    files, says, hint = KINDS[name]
    folder = filled(tmp_path / "f", *files)
    error = refusal(folder)
    assert says in error.what
    assert str(folder) in error.what
    assert hint.format(folder=folder) in error.hint


def test_a_checkpoint_of_a_trainer_is_a_checkpoint(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint-500", random_model(0))
    filled(folder, "optimizer.pt", "zero_to_fp32.py", "global_step500/x.pt", "adapter_config.json")
    assert open_checkpoint(folder).tensors


def test_a_snapshot_without_its_weights(tmp_path: Path) -> None:
    folder = filled(tmp_path / "models--Qwen--Qwen3-1.7B/snapshots/abc", "config.json")
    assert "hf download Qwen/Qwen3-1.7B" in str(refusal(folder))


def test_names_that_are_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    fetch = "Download a model of the hub first: amnesia download "
    assert refusal(Path("Qwen/Qwen3-1.7B")).hint == f"{fetch}Qwen/Qwen3-1.7B --out Qwen3-1.7B"
    assert refusal(Path("Qwen3-1.7B")).hint == f"{fetch}OWNER/Qwen3-1.7B --out Qwen3-1.7B"
    assert "Check the path." in str(refusal(tmp_path / "nowhere"))
    file = tmp_path / "model.safetensors"
    file.write_text("x")
    assert refusal(file).hint == f"Give the folder that contains it: {tmp_path}"
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="is a broken link"):
        open_checkpoint(tmp_path / "link")


def test_a_name_that_the_hubs_cache_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--Qwen--Qwen3-1.7B" / "snapshots"
    for age, name in ((10, "new"), (90, "old")):
        filled(repository / name, "config.json")
        os.utime(repository / name, (1e9 - age, 1e9 - age))
    for name in ("Qwen/Qwen3-1.7B", "Qwen3-1.7B"):
        found = refusal(Path(name)).hint
        assert found == f"The hub's cache contains it: give {repository / 'new'}"


COMMANDS: dict[str, Callable[[str, str], list[str]]] = {
    "restore --pre": lambda bad, good: ["restore", "--pre", bad, "--post", good, "--dry-run"],
    "restore --post": lambda bad, good: ["restore", "--pre", good, "--post", bad, "--dry-run"],
    "diff": lambda bad, good: ["diff", good, bad],
    "convert": lambda bad, good: [
        *("convert", "--teacher", bad, "--size", "2b", "--stage", "1", "--out", f"{good}-out")
    ],
}


NAMES: dict[str, list[str]] = {
    "restore": ["restore", "--pre", "org/base", "--post", "org/sft", "--dry-run"],
    "diff": ["diff", "org/base", "org/sft"],
    "verify": ["verify", "org/base"],
    "niah build": [
        *("niah", "build", "--tokenizer", "org/base", "--lengths", "1024", "--out", "prompts"),
        *("--tasks", "niah_single_1"),
    ],
    "data prepare": ["data", "prepare", "tulu3", "--tokenizer", "org/base", "--out", "data"],
    "generate": ["generate", "--checkpoint", "org/base", "--task", "aime24", "--out", "answers"],
}


@pytest.mark.parametrize("command", NAMES)
def test_every_command_says_how_a_name_of_the_hub_becomes_a_folder(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    data = ["--data", str(tmp_path / "problems.jsonl")] if command == "generate" else []
    (tmp_path / "problems.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
    assert main([*NAMES[command], *data]) == 2
    assert "amnesia download org/base --out base" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_recognises_an_adapter(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = save(tmp_path / "good", drifted(random_model(0), 1))
    bad = filled(tmp_path / "bad", "adapter_model.safetensors", "config.json")
    assert main(COMMANDS[command](str(bad), str(good))) == 2
    said = capsys.readouterr().err
    assert f"{bad}: is an adapter" in said
    assert "merge_and_unload" in said
