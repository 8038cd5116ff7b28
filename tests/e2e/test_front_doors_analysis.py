"""The front door of analyses, called from Python, does what the commands do; mistakes are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.cli.report import parse_analysis
from amnesia_bench.errors import ExitCode, UserError
from amnesia_bench.requests.analysis import (
    AnalyzeRequest,
    AttentionMaps,
    Autocorrelations,
    Distances,
    Divergence,
    Gradients,
    NeedlePrompts,
)
from amnesia_bench.store.hashing import read_manifest
from amnesia_bench.store.layout import MANIFEST
from tests.support.small_data import cot_row, data_config, prepare, save_tokenizer, write_rows


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints pre and post of a small Llama, and chains prepared with their tokenizer."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "pre")
    save_tokenizer(folder / "pre")
    shutil.copytree(folder / "pre", folder / "post")
    file = folder / "post" / "model.safetensors"
    weights = load_file(file)
    moved = {n: w + 0.1 * torch.randn_like(w) if "q_proj" in n else w for n, w in weights.items()}
    save_file(moved, file, {"format": "pt"})
    chains = write_rows(folder / "chains.jsonl", [cot_row(i) for i in range(30)])
    prepare(data_config(name="chains"), folder / "pre", folder / "chains", [chains])
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}


def test_a_request_and_a_command_write_the_same_files(inputs: Path, tmp_path: Path) -> None:
    data = {"chains": inputs / "chains"}
    analysis = Divergence(pre=inputs / "pre", post=inputs / "post", data=data, tokens=64, samples=4)
    made = ab.analyze(AnalyzeRequest(analysis=analysis), tmp_path / "python")
    command = ["analyze", "divergence", "--checkpoint", f"pre={inputs / 'pre'}"]
    command += ["--checkpoint", f"post={inputs / 'post'}", "--data", f"chains={inputs / 'chains'}"]
    command += ["--tokens", "64", "--samples", "4", "--out", str(tmp_path / "typed")]
    assert main(command) == ExitCode.DONE
    assert files(tmp_path / "python") == files(tmp_path / "typed")
    record = made.records["divergence"]
    assert record.divergence.value > 0  # type: ignore[attr-defined]
    assert 0 < record.weight_change <= record.routing_change  # type: ignore[attr-defined]
    roles = {parent.role for parent in read_manifest(tmp_path / "python").parents}
    assert roles == {"pre", "post", "data:chains"}
    with pytest.raises(UserError, match="already exists"):
        ab.analyze(AnalyzeRequest(analysis=analysis), tmp_path / "python")


def test_requests_that_cannot_be_measured_are_refused() -> None:
    folders = {"pre": Path("a"), "post": Path("b")}
    with pytest.raises(ValidationError, match="either prompts or one source of data"):
        Distances(checkpoints=folders)
    with pytest.raises(ValidationError, match="either prompts or one source of data"):
        Distances(
            checkpoints=folders, prompts=NeedlePrompts(folder=Path("p")), data={"c": Path("d")}
        )
    with pytest.raises(ValidationError, match="--heads is missing"):
        AttentionMaps(checkpoints={"pre": Path("a")}, prompts=NeedlePrompts(folder=Path("p")))
    with pytest.raises(ValidationError):
        Gradients(checkpoint=Path("a"), data={"a/b": Path("d")})  # it becomes part of a file name
    with pytest.raises(ValidationError):
        Autocorrelations(data={})
    with pytest.raises(ValidationError):
        Divergence(pre=Path("a"), post=Path("b"), data={"c": Path("d"), "e": Path("f")})


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--checkpoint pre=PRE --data CHAINS", "from one checkpoint to another"),
        ("--checkpoint pre=PRE --checkpoint post=PRE --data CHAINS", "no weights differ"),
        ("--checkpoint pre=PRE --checkpoint post=POST --data CHAINS --tokens 5", "trained token"),
        ("--checkpoint pre=PRE --checkpoint post=POST --data CHAINS --samples 0", "at least 1"),
        ("--checkpoint pre=PRE --checkpoint post=POST --data PRE", "not a finished artifact"),
        ("--checkpoint pre=PRE --checkpoint post=POST --data a=CHAINS --data b=CHAINS", "2 times"),
        ("--checkpoint pre=PRE --checkpoint post=GONE --data CHAINS", "gone"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    for name in ("pre", "post", "chains", "gone"):
        for before in (" ", "="):
            command = command.replace(f"{before}{name.upper()}", f"{before}{inputs / name}")
    words = ["analyze", "divergence", *command.split(), "--out", str(tmp_path / "out")]
    assert main(words) == ExitCode.USER_ERROR
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_report_takes_finished_analyses_only(inputs: Path, tmp_path: Path) -> None:
    label = parse_analysis(f"tiny@cot/3={inputs / 'chains'}")
    assert (label.model, label.finetune, label.seed) == ("tiny", "cot", "3")
    assert parse_analysis("tiny=x").seed == "0"
    with pytest.raises(UserError, match="expected MODEL@SFT/SEED=DIR"):
        parse_analysis("folder")
    request = ab.ReportRequest(tables=("tiny_table1",), analyses=(label,))
    with pytest.raises(UserError, match="not a finished folder of `amnesia analyze`"):
        ab.report(request, tmp_path / "report")
    assert not (tmp_path / "report").exists()
