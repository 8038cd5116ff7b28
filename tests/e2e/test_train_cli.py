"""`amnesia train` from rows of text to a checkpoint, and what it says when something is missing."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from amnesia_bench.cli.main import main
from amnesia_bench.store.hashing import verify_manifest
from tests.support.small_data import cot_row, save_tokenizer, write_rows
from tests.support.training_runs import write_hypenet

SMALL = [
    "train.steps=3",
    "train.optimizer.warmup_steps=1",
    "train.sequence_tokens=256",
    "train.global_batch=2",
    "train.compute_dtype=fp32",
    "train.activation_checkpointing=none",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli_train")
    save_tokenizer(folder / "tokenizer")
    vocab = len(json.loads((folder / "tokenizer/tokenizer.json").read_text())["model"]["vocab"])
    write_hypenet(folder / "init", vocab_size=vocab + 16)
    for path in (folder / "tokenizer").iterdir():
        (folder / "init" / path.name).write_bytes(path.read_bytes())
    rows = write_rows(folder / "rows.jsonl", [cot_row(i) for i in range(60)])
    command = ["data", "prepare", "miromind", "--tokenizer", str(folder / "init"), "--out",
               str(folder / "data"), "--input", str(rows), "data.sequence_tokens=256"]  # fmt: skip
    assert main(command) == 0
    return folder


def command(folder: Path, *more: str, out: str = "out") -> list[str]:
    return ["train", "--config", "sft_miromind_2b", "--data", str(folder / "data"), "--init",
            str(folder / "init"), "--out", str(folder / out), *SMALL, *more]  # fmt: skip


def test_rows_become_a_checkpoint_that_names_its_parents(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(folder)) == 0
    assert "tiny" not in capsys.readouterr().err
    out = folder / "out"
    assert verify_manifest(out) == []
    parents = json.loads((out / "manifest.json").read_text())["parents"]
    assert [(p["role"], p["location"]) for p in parents] == [
        ("init", str(folder / "init")),
        ("data:miromind", str(folder / "data")),
    ]
    assert main(["verify", str(out)]) == 0
    assert main(command(folder)) == 2
    assert "already exists; nothing was written" in capsys.readouterr().err


def test_an_adapter_is_called_one_and_not_a_folder_without_a_tokenizer(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert main([*command(folder, out="of_adapter"), "--init", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "adapter" in said
    assert "no tokenizer" not in said
    assert not (folder / "of_adapter").exists()


def test_sigterm_saves_and_asks_to_be_started_again(folder: Path) -> None:
    words = command(folder, "train.steps=100000", out="endless")
    started = subprocess.Popen([sys.executable, "-m", "amnesia_bench.cli.main", *words],
                               stderr=subprocess.PIPE)  # fmt: skip
    metrics = folder / "endless.training/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size):
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 75, said
    assert b"stopped by a signal; the state is saved in" in said
    (save,) = (folder / "endless.training/checkpoints").iterdir()
    assert save.name == f"step-{len(metrics.read_text().splitlines()):08d}"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["train.sequence_tokens=32"], "sequences of 256 tokens, the stage needs 32"),
        (["recipe=halo_parity"], "prepared with documents isolated"),
        (["--teacher", "x"], "sft_miromind_2b has no teacher"),
        (["train.stepz=1"], "Did you mean steps?"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert main(command(folder, *more, out="refused")) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in folder.iterdir() if "refused" in path.name] == []


def test_a_tokenizer_that_splits_otherwise_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_hypenet(folder / "other")
    for path in (folder / "tokenizer").iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    whole = json.loads((other / "tokenizer.json").read_text())
    first, second = list(whole["model"]["vocab"])[40:42]
    vocab = whole["model"]["vocab"]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (other / "tokenizer.json").write_text(json.dumps(whole))
    words = command(folder, out="refused")
    words[words.index(str(folder / "init"))] = str(other)
    assert main(words) == 2
    assert "a different tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("drop", "said"),
    [
        ("--data", "--data is missing"),
        ("--init", "--init is missing"),
        ("--out", "--out is missing"),
    ],
)
def test_a_missing_option_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], drop: str, said: str
) -> None:
    words = command(folder, out="refused")
    at = words.index(drop)
    assert main(words[:at] + words[at + 2 :]) == 2
    assert said in capsys.readouterr().err


def test_sources_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(folder, out="refused")
    words[words.index(str(folder / "data"))] = f"mirromind={folder / 'data'}"
    assert main(words) == 2
    assert "expected NAME=FOLDER, once for each of miromind" in capsys.readouterr().err
    two = ["train", "--config", "stage3_2b", "--data", f"fineweb_edu={folder / 'data'}", "--init",
           str(folder / "init"), "--out", str(folder / "refused")]  # fmt: skip
    assert main(two) == 2
    assert "--data ultradata_math=FOLDER is missing" in capsys.readouterr().err
