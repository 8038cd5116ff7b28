"""Jet-Nemotron by command: fine-tune, restore, check and generate, without any code of a folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from amnesia_bench.cli.main import main
from amnesia_bench.store.hashing import verify_manifest
from tests.support.byte_checkpoints import write_haystack
from tests.support.jet import JET_PICO, jet_model
from tests.support.small_data import CHATML_TEMPLATE, cot_row, save_tokenizer, write_rows

SMALL = [
    "train.steps=3",
    "train.optimizer.warmup_steps=1",
    "train.optimizer.learning_rate=0.01",
    "train.sequence_tokens=256",
    "train.global_batch=2",
    "train.compute_dtype=fp32",
    "train.compile=false",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jet")
    tokenizer = save_tokenizer(folder / "tokenizer", template=CHATML_TEMPLATE)
    vocabulary = json.loads((tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    shape = JET_PICO | {"vocab_size": len(vocabulary) + 16}
    # The words of NVlabs' file, and a reference to code that must not be needed.
    classes = {"AutoModelForCausalLM": "modeling_jet_nemotron.JetNemotronForCausalLM"}
    jet_model(shape | {"auto_map": classes}).save_pretrained(folder / "base")
    shutil.copytree(tokenizer, folder / "base", dirs_exist_ok=True)
    rows = write_rows(folder / "rows.jsonl", [cot_row(i) for i in range(60)])
    chat = "data.chat.default_system=You are kind."
    assert main(["data", "prepare", "miromind_jet_nemotron", "--tokenizer", str(folder / "base"),
                 "--out", str(folder / "data"), "--input", str(rows), chat,
                 "data.sequence_tokens=256"]) == 0  # fmt: skip
    assert main(["train", "--config", "sft_miromind_jet_nemotron_2b", "--data",
                 str(folder / "data"), "--init", str(folder / "base"), "--out",
                 str(folder / "sft"), *SMALL]) == 0  # fmt: skip
    return folder


def test_documents_are_packed_and_the_checkpoint_keeps_nvlabs_words(folder: Path) -> None:
    assert verify_manifest(folder / "sft") == []
    config = json.loads((folder / "sft/config.json").read_text())
    assert config["layer_types"] == JET_PICO["layer_types"]
    before, after = (load_file(folder / name / "model.safetensors") for name in ("base", "sft"))
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_restore_returns_the_full_softmax_layers_and_leaves_the_windows(folder: Path) -> None:
    restored = folder / "restored"
    command = ["restore", "--pre", str(folder / "base"), "--post", str(folder / "sft")]
    assert main([*command, "--out", str(restored)]) == 0
    assert main(["diff", str(folder / "sft"), str(restored)]) == 0
    base, sft, new = (
        load_file(folder / name / "model.safetensors") for name in ("base", "sft", "restored")
    )
    changed = {name for name in new if not torch.equal(new[name], sft[name])}
    assert changed == {
        f"model.layers.1.self_attn.{name}.{kind}"
        for name in ("q_proj", "k_proj")
        for kind in ("weight", "bias")
    }
    assert all(torch.equal(new[name], base[name]) for name in changed)


@pytest.fixture(scope="module")
def prompts(folder: Path) -> Path:
    write_haystack(folder / "essays.json")
    command = ["niah", "build", "--tokenizer", str(folder / "base"), "--lengths", "1024"]
    assert main([*command, "--samples", "4", "--tasks", "niah_single_2", "--haystack",
                 str(folder / "essays.json"), "--out", str(folder / "prompts")]) == 0  # fmt: skip
    return folder / "prompts"


def test_check_shares_prefixes(
    folder: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = folder / "check"
    command = ["check", "--pre", str(folder / "base"), "--post", str(folder / "sft"), "--prompts",
               str(prompts), "--lengths", "1024", "--tasks", "niah_single_2",
               "--samples", "4", "--work", str(report)]  # fmt: skip
    assert main(command) in (0, 3)
    printed = capsys.readouterr()
    assert "will not share prefixes" not in printed.out + printed.err


def test_generate_answers_a_benchmark(folder: Path) -> None:
    problems = folder / "gsm8k.jsonl"
    rows = [{"question": f"What is {n} plus one?", "answer": f"#### {n + 1}"} for n in range(3)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "answers"
    command = ["generate", "--checkpoint", str(folder / "sft"), "--task", "gsm8k"]
    few = ["eval.max_new_tokens=5", "eval.repeats=1"]
    assert main([*command, "--data", str(problems), "--out", str(out), *few]) == 0
    answers = [line for path in out.glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(answers) == 3


def test_niah_is_evaluated(folder: Path, prompts: Path) -> None:
    out = folder / "niah"
    command = ["eval", "niah", "--checkpoint", str(folder / "sft"), "--prompts", str(prompts)]
    choice = ["--lengths", "1024", "--tasks", "niah_single_2", "--samples", "2"]
    assert main([*command, *choice, "--max-new-tokens", "4", "--out", str(out)]) == 0
    cell = json.loads((out / "niah_single_2@1024/cell.json").read_text())
    assert cell["n"] == 2


def test_layers_are_ranked(folder: Path) -> None:
    data, out = folder / "retrieval", folder / "ranking.json"
    data.mkdir()
    rows = [{"text": f" Town {i}: its gate is ", "value": "red"} for i in range(2)]
    (data / "swde.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["rank-layers", "--checkpoint", str(folder / "sft"), "--data", str(data)]
    assert main([*command, "--tasks", "swde", "--out", str(out)]) == 0
    ranked = {entry["layer"] for entry in json.loads(out.read_text())["layers"]}
    kinds = JET_PICO["layer_types"]
    assert ranked == {i for i, kind in enumerate(kinds) if kind == "attn"}


def test_attention_and_gradients_are_analyzed(folder: Path, prompts: Path) -> None:
    given = ["--checkpoint", f"pre={folder / 'base'}", "--checkpoint", f"post={folder / 'sft'}"]
    distance = ["analyze", "distance", *given, "--prompts", str(prompts), "--length", "1024"]
    assert main([*distance, "--samples", "2", "--out", str(folder / "distance")]) == 0
    gradients = ["analyze", "gradients", "--checkpoint", str(folder / "sft"), "--tokens", "150"]
    data = ["--data", f"chains={folder / 'data'}", "--samples", "2"]
    assert main([*gradients, *data, "--out", str(folder / "gradients")]) == 0
    for name in ("distance", "gradients"):
        assert verify_manifest(folder / name) == []
