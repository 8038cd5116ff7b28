"""Fetching a model: only what a checkpoint is made of, proven, whole or not at all."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants as hub_constants
import numpy as np
import pytest
from safetensors.numpy import save

import amnesia_bench as ab
from amnesia_bench.cli.main import main
from amnesia_bench.errors import MissingEnvironmentError, StageFailedError, UserError
from amnesia_bench.requests.checkpoints import DownloadRequest
from amnesia_bench.store.hashing import read_manifest, verify_manifest
from amnesia_bench.store.layout import resumable_path
from amnesia_bench.weights.checkpoint import open_checkpoint
from amnesia_bench.weights.file_names import INDEX
from amnesia_bench.weights.hub import Downloaded
from tests.support.fake_hub import COMMIT, FakeHub, serving

MODEL = "owner/model"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def download(repository: str, revision: str | None, out: Path) -> Downloaded:
    return ab.download(DownloadRequest(repository=repository, revision=revision), out)


def files(**changes: bytes | None) -> dict[str, bytes]:
    found: dict[str, bytes | None] = {
        "config.json": json.dumps({"model_type": "qwen3"}).encode(),
        "tokenizer.json": b"{}",
        "merges.txt": b"a b\n",
        "LICENSE": b"free",
        "README.md": b"hello",
        ".gitattributes": b"*",
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": b"the same again",
        "onnx/model.onnx": b"x",
        "evil.py": b"raise SystemExit('ran')",
        ONE: save({"a": np.arange(4000, dtype=np.float32)}),
        TWO: save({"b": np.ones(4000, dtype=np.float32)}),
        INDEX: json.dumps({"weight_map": {"a": ONE, "b": TWO}}).encode(),
        **changes,
    }
    return {name: data for name, data in found.items() if data is not None}


@pytest.fixture
def open_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, bytes]], FakeHub]]:
    """Returns a function that starts a hub which the library then asks."""
    open_ones = []

    def start(held: dict[str, bytes]) -> FakeHub:
        context = serving(FakeHub(MODEL, held))
        hub = context.__enter__()
        open_ones.append(context)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(hub_constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(hub_constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        return hub

    yield start
    for context in open_ones:
        context.__exit__(None, None, None)


Start = Callable[[dict[str, bytes]], FakeHub]


def in_process(hub: FakeHub, out: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "amnesia_bench.cli.main", "download", MODEL, "--out", str(out)],
        env={**os.environ, "HF_ENDPOINT": hub.url},
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_checkpoint_is_fetched_and_nothing_else(tmp_path: Path, open_hub: Start) -> None:
    hub = open_hub(files())
    out = tmp_path / "out"
    found = download(MODEL, None, out)
    wanted = {"config.json", "tokenizer.json", "merges.txt", "LICENSE", ONE, TWO, INDEX}
    manifest = read_manifest(out)
    assert {entry.path for entry in manifest.files} == wanted == set(hub.fetched)
    assert verify_manifest(out) == []
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert set(open_checkpoint(out).tensors) == {"a", "b"}
    assert (found.commit, found.files, found.code) == (COMMIT, 7, ())
    assert found.bytes == sum(len(hub.files[name]) for name in wanted)
    (parent,) = manifest.parents
    assert (parent.location, parent.identity) == (f"hf://{MODEL}", f"commit:{COMMIT}")


def test_code_of_an_architecture_is_kept_and_not_run(
    tmp_path: Path, open_hub: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"model_type": "jet_nemotron", "auto_map": {"AutoConfig": "evil.Config"}}
    open_hub(
        files(**{"config.json": json.dumps(config).encode(), INDEX: None})
        | {"model.safetensors": save({"a": np.zeros(1)})}
    )
    command = ["download", MODEL, "--revision", "main", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"{MODEL} at {COMMIT}" in said
    assert "It contains custom code, which was not run: evil.py" in said
    assert (tmp_path / "out" / "evil.py").is_file()
    assert not (tmp_path / "out" / ONE).exists()


def test_a_killed_download_goes_on_with_what_is_missing(tmp_path: Path, open_hub: Start) -> None:
    hub = open_hub(files())
    out = tmp_path / "out"
    process: list[subprocess.Popen[str]] = []

    def kill(name: str) -> None:
        if name == TWO:
            process[0].send_signal(signal.SIGKILL)

    hub.before = kill
    process.append(in_process(hub, out))
    assert process[0].wait() == -signal.SIGKILL
    process[0].communicate()
    assert not out.exists()
    assert (resumable_path(out) / ONE).is_file()
    hub.before = None
    download(MODEL, None, out)
    assert verify_manifest(out) == []
    assert hub.fetched.count(ONE) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_what_is_not_ours_beside_a_download_stays(tmp_path: Path, open_hub: Start) -> None:
    hub = open_hub(files())
    own = resumable_path(tmp_path / "out") / "notes.txt"
    own.parent.mkdir()
    own.write_text("mine")
    download(MODEL, None, tmp_path / "out")
    assert verify_manifest(tmp_path / "out") == []
    assert [path.name for path in own.parent.iterdir()] == ["notes.txt"]
    assert hub.fetched.count(ONE) == 1


def test_tokenizers_of_every_age_are_fetched(tmp_path: Path, open_hub: Start) -> None:
    tokenizer = {
        "qwen.tiktoken": b"a",
        "vocab.bpe": b"b",
        "tekken.json": b"{}",
        "spiece.model": b"c",
        "source.spm": b"d",
        "bpe.codes": b"e",
        "chat_template.jinja": b"f",
    }
    remote = json.dumps({"auto_map": {"AutoTokenizer": ["evil.T", None]}}).encode()
    open_hub(files() | tokenizer | {"tokenizer_config.json": remote})
    found = download(MODEL, None, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {*tokenizer, "tokenizer_config.json", "evil.py"}
    assert found.code == ("evil.py",)


def test_a_name_without_its_owner_and_a_url(tmp_path: Path, open_hub: Start) -> None:
    open_hub(files())
    with pytest.raises(UserError, match="the hub has no such model") as refused:
        download("model", None, tmp_path / "out")
    assert "The owner's name is missing: OWNER/model" in str(refused.value.hint)
    with pytest.raises(UserError, match="not a repository name") as refused:
        download("https://huggingface.co/Qwen/Qwen3-1.7B/tree/main", None, tmp_path / "out")
    assert refused.value.hint == "Give Qwen/Qwen3-1.7B"


@pytest.mark.parametrize("name", [TWO, "tokenizer.json"])
def test_a_file_that_is_not_what_the_hub_says_is_fetched_again(
    tmp_path: Path, open_hub: Start, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hub = open_hub(files())
    good = hub.info()
    hub.files[name] = hub.files[name][:-1] + b"!"
    monkeypatch.setattr(hub, "info", lambda _: good)
    with pytest.raises(StageFailedError, match=f"the hash of {name} differs from the hub's"):
        download(MODEL, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    hub.files = files()
    download(MODEL, None, tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == hub.files[name]


@pytest.mark.parametrize(
    ("status", "code", "kind", "said"),
    [
        (404, "RepoNotFound", UserError, "the hub has no such model"),
        (404, "", UserError, "the hub has no such model"),
        (401, "", UserError, "or you have no access to it"),
        (403, "GatedRepo", UserError, "gated: its owners require you to accept their terms"),
        (404, "RevisionNotFound", UserError, "has no revision v9"),
        (418, "", MissingEnvironmentError, "the hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses_is_named(
    tmp_path: Path, open_hub: Start, status: int, code: str, kind: type[Exception], said: str
) -> None:
    hub = open_hub(files())
    hub.refusals["/api/models/"] = (status, code)
    with pytest.raises(kind, match=said):
        download(MODEL, "v9", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_on_the_way_keeps_what_is_complete(tmp_path: Path, open_hub: Start) -> None:
    hub = open_hub(files())
    hub.refusals[f"/{MODEL}/resolve/{COMMIT}/{TWO}"] = (418, "")
    with pytest.raises(MissingEnvironmentError, match="the hub cannot be reached"):
        download(MODEL, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    hub.refusals.clear()
    download(MODEL, None, tmp_path / "out")
    assert hub.fetched.count(ONE) == 1


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (files(**{"config.json": None}), "has no config.json, so it is not a model"),
        (files(**{INDEX: None}), "pytorch_model.bin is a pickle, which can run code"),
        (files(**{TWO: None}), f"lists '{TWO}', which is not a weight file there"),
        (files(**{INDEX: b'{"weight_map": {"a": "evil.py"}}'}), "lists 'evil.py'"),
        (files(**{INDEX: b"[]"}), "is not an index"),
        (files(**{"config.json": b"{"}), "config.json is not JSON"),
    ],
)
def test_what_is_no_model_of_safetensors_is_named(
    tmp_path: Path, open_hub: Start, held: dict[str, bytes], said: str
) -> None:
    open_hub(held)
    with pytest.raises(UserError, match=said):
        download(MODEL, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_name_and_no_hub_are_named(
    tmp_path: Path, open_hub: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = open_hub(files())
    with pytest.raises(UserError, match="a b: is not a repository name"):
        download("a b", None, tmp_path / "out")
    with monkeypatch.context() as offline:
        offline.setattr(hub_constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(MissingEnvironmentError, match="HF_HUB_OFFLINE forbids"):
            download(MODEL, None, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MissingEnvironmentError, match="the hub cannot be reached"):
        download(MODEL, None, tmp_path / "out")
    assert hub.fetched == []


def test_a_disk_that_is_too_small_is_told_before_weights_are_fetched(
    tmp_path: Path, open_hub: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = open_hub(files())
    usage = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StageFailedError, match="bytes are needed and 10,000 are free"):
        download(MODEL, None, tmp_path / "out")
    assert ONE not in hub.fetched


def test_a_disk_that_is_full_on_the_way_is_told(tmp_path: Path, open_hub: Start) -> None:
    hub = open_hub(files())

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    process = in_process(hub, tmp_path / "out", preexec_fn=limit)
    _, said = process.communicate()
    assert process.returncode == 4
    assert "no space left while writing" in said
    assert not (tmp_path / "out").exists()
